"""Jobs: run.py runs one, follow.py waits for its end, and results.py keeps what it has written."""
