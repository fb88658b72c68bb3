"""Jobs: a folder becomes a small disk, runs in a box, and its results come back as a folder."""
