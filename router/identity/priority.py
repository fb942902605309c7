"""Classes of priority, by name. In facts and in the waiting queue a class is its place here: 0 goes first."""

from __future__ import annotations

CLASSES = ("high", "normal", "low")
NORMAL = CLASSES.index("normal")
