"""The network: arrays in, arrays out. No files, no mesh, no threads."""
