"""What Ray Serve runs: Router, Engine and Egress. The only folder that imports ray, and only in the modules that need it."""
