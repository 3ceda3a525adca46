"""This library's own checkpoints, and access to files and the Hub."""
