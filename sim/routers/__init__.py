"""The routers that come with Loratory, one in each file; each imports `loratory.router` and nothing else of it."""
