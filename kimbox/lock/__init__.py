"""From names that move (branches, folders) to commits that do not, and the lock file that records them."""
