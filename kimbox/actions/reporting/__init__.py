"""What `kimbox report` shows: `subjects` finds what is described, `facts` lists what is known about it."""
