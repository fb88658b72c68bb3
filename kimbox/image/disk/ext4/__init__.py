"""ext4 file systems that no kernel has mounted."""
