"""Builds an image: locked packages become a root file system, and that becomes a bootable disk."""
