"""The image store, in which each image has a key, and the names of added boxes."""
