"""Keys and limits over several router processes on one store: how soon a revocation holds, and how far a limit is overshot."""
