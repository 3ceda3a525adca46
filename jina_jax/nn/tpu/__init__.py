"""Kernels of TPUs, in Pallas; interpreted on other platforms, for tests."""
