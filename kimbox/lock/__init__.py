"""The lock: from names that move (branches, suites) to commits and checksums that do not."""
