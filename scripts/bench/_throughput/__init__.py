"""Output tokens a second of a real vLLM, asked directly and through the router: the modules of `scripts/bench/throughput`."""
