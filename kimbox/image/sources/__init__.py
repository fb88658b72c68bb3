"""Downloads or copies images that were not built by this kimbox."""
