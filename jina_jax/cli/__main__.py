"""``python -m jina_jax.cli``, the same as ``jina-jax``."""

from jina_jax.cli.main import main

main(prog_name="jina-jax")
