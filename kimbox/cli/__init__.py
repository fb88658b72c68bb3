"""The command line: a verb a file, arguments and output only."""
