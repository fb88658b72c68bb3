"""What several verbs do with a machine: create.py makes it, start.py starts or wakes it, readiness.py waits for it."""
