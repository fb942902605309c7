"""The only way out of the cluster: as a Serve deployment, or hardened as `python -m deployments.egress` outside Ray."""
