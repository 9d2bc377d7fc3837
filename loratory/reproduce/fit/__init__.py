"""fit: how the constants of published scenarios follow from the figures they were set on."""
