"""loratory.cli: the command line."""
