"""Git repositories: mirrors on the host, refs, commits, signatures, submodules."""
