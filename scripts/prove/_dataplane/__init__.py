"""Proofs that the data plane stays honest under faults. Simulated engines throughout."""
