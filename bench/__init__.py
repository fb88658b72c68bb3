"""Measurements against peers, as ratios. Each module is a program: `python -m bench.boot`."""
