"""placements: one file each; what decides which replicas an adapter's requests may go to."""
