"""Jobs in a pool of HTCondor: submitted, watched, fetched, and managed."""
