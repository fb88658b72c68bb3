"""A spec with its lock, and what follows from them: project.py, check.py, pins.py, unpinned.py, plan.py."""
