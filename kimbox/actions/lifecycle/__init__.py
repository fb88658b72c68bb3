"""Parts that several verbs share: create.py creates a machine, handover.py prepares its delivery, start.py starts or
wakes it, readiness.py waits."""
