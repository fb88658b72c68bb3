"""Images: built or fetched, kept in the store, read and changed as disks, exported as packages."""
