"""fit: the constants of published scenarios, recomputed from the data they were fitted on."""
