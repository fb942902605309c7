"""Simulated engines: vLLM's scheduling without its arithmetic. Nothing here touches a machine, a socket or a clock."""
