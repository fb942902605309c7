"""What several routers share and a restart must not lose: keys, and how much of every limit is used. Never on the hot path."""
