"""Overload on purpose: an open-loop load over sockets, with and without the admission queue."""
