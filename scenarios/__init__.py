"""scenarios: YAML in, a stream of requests out.

`scenarios.load` reads and dumps scenario files, `scenarios.schema` is what they may say, `scenarios.build` turns one
into adapters and a `serving.workload.Workload`, `scenarios.traces` reads other people's logs, and
`scenarios.catalogue` lists the files that come with Loratory.
"""
