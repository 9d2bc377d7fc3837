"""serving: the shared core. Requests and adapters, the policy interface, the ledger that enforces, the engine."""
