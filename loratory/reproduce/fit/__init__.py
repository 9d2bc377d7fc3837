"""fit: the constants of the published scenarios, computed from the figures they are fitted on."""
