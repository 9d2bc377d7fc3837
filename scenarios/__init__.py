"""scenarios: YAML in, a stream of requests out.

`loratory.scenarios.load` reads and dumps scenario files, `loratory.scenarios.schema` is what they may say,
`loratory.scenarios.build` turns one into adapters and a `loratory.serving.workload.Workload`,
`loratory.scenarios.traces` reads other people's logs, and `loratory.scenarios.library_index` lists the files that
come with Loratory.
"""
