"""Parts that several verbs share: create.py creates a machine, start.py starts or wakes it, readiness.py waits."""
