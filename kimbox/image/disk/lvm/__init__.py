"""Reads and writes LVM2 metadata without LVM."""
