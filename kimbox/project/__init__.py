"""A spec with its lock, and what follows from them.

project.py: the Project. check.py: checks the lock. pins.py: writes the lock. unpinned.py: replaces locked repositories
for one command. plan.py: the Plan.
"""
