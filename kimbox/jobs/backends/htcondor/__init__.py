"""Runs jobs in a pool of HTCondor."""
