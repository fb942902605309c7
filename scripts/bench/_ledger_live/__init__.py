"""The audit log and the store measured on a running router, over sockets: `scripts/bench/ledger --live`, `--store-stopped`."""
