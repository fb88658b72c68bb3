"""Reads and changes disks that are not mounted: partition table, LVM, ext4, COW store of the snapshot."""
