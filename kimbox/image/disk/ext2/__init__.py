"""Writes ext2 file systems without mounting them."""
