"""The terminal of the commands: names in configurations, logs and answers are others' text, and no terminal is to obey it."""

from __future__ import annotations

from typing import Any

import rich.console

from router.legible import legible


class Console(rich.console.Console):
    """Rich's, with the control characters in every text shown as `\\uXXXX`."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; texts are made legible, tables and the like are made of names that have been checked."""
        super().print(*(legible(item) if isinstance(item, str) else item for item in objects), **options)
