"""A spec with its lock, and what follows from them.

project.py: the Project. scripts.py, pinned_scripts.py, shell.py: check its scripts before a build. check.py: checks
the lock. pins.py: writes the lock. unpinned.py: replaces locked repositories for one command. plan.py: the Plan.
"""
