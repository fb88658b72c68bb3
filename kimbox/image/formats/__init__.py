"""Reads and writes formats of boxes and disks: Vagrant boxes, OVA, VMDK, qcow2, zstd, xz, checksum files, catalogs."""
