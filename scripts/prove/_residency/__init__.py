"""The proofs of residency: laws (Z3), protocol (exhaustive), code (seeded simulation), and mutants that all must catch."""
