"""Root file systems, the LVM2 disk, and the content-addressed store of images."""
