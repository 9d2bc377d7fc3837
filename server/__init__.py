"""Server: an OpenAI-compatible HTTP server over one executor, whose policy and adapters change while it runs.

`loratory.server.run.serve` starts it; docs/serving.md is the guide, docs/architecture.md lists the files.
"""
