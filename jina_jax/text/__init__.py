"""Text: strings in, token ids and spans out. No JAX."""
