"""Saves of boxes in stores: writing them, finding and removing them, and making machines of them."""
