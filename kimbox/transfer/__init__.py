"""Downloads by URL, with limits and verified digests."""
