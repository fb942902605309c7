"""The proofs behind `scripts/prove/ledger`."""
