"""Reads and changes disks that no kernel has mounted: partition table, LVM, ext4, snapshot store."""
