"""The `tidegate` command: start, stop, look at and talk to a tidegate on this machine."""
