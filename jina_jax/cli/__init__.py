"""The command ``jina-jax``."""
