"""Runs jobs elsewhere than on this host."""
