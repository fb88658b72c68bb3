"""The disk of a job: written from a folder, and read back, without a mount and without root."""
