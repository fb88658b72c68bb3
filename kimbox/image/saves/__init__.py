"""Saves of a disk: its chunks, packs, index and manifest, and what a save must not contain."""
