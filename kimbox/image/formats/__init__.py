"""The formats in which disks and boxes come in and go out."""
