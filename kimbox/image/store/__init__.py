"""The image store, by content, and the names of added boxes."""
