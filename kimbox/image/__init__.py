"""Images: builds or downloads them, stores them, reads and changes their disks, and exports them as packages."""
