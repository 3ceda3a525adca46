"""Devices, shapes and threads: batches in, vectors out."""
