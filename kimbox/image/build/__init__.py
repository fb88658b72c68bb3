"""Builds an image: installs locked packages in a root file system, and writes it to a bootable disk."""
