"""The agent beside an engine: vLLM's KV-cache events in, keyed hashes of prompt text out."""
