"""Gets images that were made elsewhere."""
