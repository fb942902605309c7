"""What a request costs on its way through a router: the modules of `scripts/bench/datapath`."""
