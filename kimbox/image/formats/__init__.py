"""Reads and writes formats of boxes and disks: Vagrant boxes, OVA, VMDK, qcow2, xz, checksum files, catalogs."""
