"""What follows from a spec and its lock."""
