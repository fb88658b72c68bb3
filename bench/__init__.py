"""Benchmarks: ratios to other programs, or to limits. Each module is a program, for example `python -m bench.boot`."""
