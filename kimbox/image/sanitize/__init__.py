"""Removes what one run, one host or one owner left on a disk, and searches a disk for secrets."""
