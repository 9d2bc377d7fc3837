"""scenarios: YAML in, a stream of requests out.

`loratory.scenarios.load` reads and writes scenario files, `loratory.scenarios.schema` defines their keys,
`loratory.scenarios.build` turns one into adapters and a `loratory.serving.workload.Workload`,
`loratory.scenarios.traces` reads published request logs, and `loratory.scenarios.library_index` lists the files that
come with Loratory.
"""
