"""Conversations with several real vLLM engines behind one router after another: the modules of `scripts/bench/live`."""
