"""Packages: where they come from, which are chosen, and the cache of their files."""
