"""Text processing: strings to token ids and spans, without JAX."""
