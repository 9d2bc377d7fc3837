"""fit: where the constants of the published scenarios come from. Each module prints its own: ``python -m``."""
