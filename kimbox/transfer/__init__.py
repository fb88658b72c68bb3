"""Bytes by URL, within limits and verified."""
