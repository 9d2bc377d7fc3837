"""loratory.experiment: from a scenario to a result folder, on either backend."""
