"""Jobs: run.py runs one, and results.py keeps what it has written. request.py has what both know of it."""
