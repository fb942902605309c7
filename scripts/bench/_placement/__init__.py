"""The parts of `scripts/bench/placement`."""
