"""policies: one file a scheduling policy. Each imports `loratory.policy` and nothing else of ours."""
