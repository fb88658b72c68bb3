"""Reads and changes ext4 file systems that are not mounted."""
