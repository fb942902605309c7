"""What a text holds that residency cares about: personal, health and financial data, and secrets.

A classification may only tighten a label. It never proves that a text is harmless: what it finds is kept closer to home, and what
it does not find changes nothing.
"""

from router.residency.classify.kinds import CATEGORY, Category, Finding, Kind, Scan

__all__ = ["CATEGORY", "Category", "Finding", "Kind", "Scan"]
