"""policies: one file a scheduling policy. Each imports `serving.policy` and nothing else of ours."""
