"""adapters.registry: names to immutable ids, versions and history, in SQLite or PostgreSQL."""
