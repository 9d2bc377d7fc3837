"""loratory.experiment.notes: what a report tells its reader beside the figures: the setting, doubts, advice."""
