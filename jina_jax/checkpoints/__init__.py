"""This library's own checkpoints, and where files come from."""
