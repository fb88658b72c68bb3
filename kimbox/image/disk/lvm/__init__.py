"""LVM2's metadata, read and written without LVM."""
