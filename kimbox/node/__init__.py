"""Runs one job on a host without kimbox: the execute node of a pool. Only modules of Python's standard library.

`kimbox job submit` packs this package, and the modules of kimbox that it uses, into one file
(kimbox/jobs/backends/runner.py).
"""
