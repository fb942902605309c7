"""What Ray Serve runs. This package itself imports nothing: `deployments.leash` is a program of its own."""
