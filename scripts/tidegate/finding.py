"""What a check of `tidegate doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is; `up` refuses to start on an error."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """The result of one check; `next_step` is empty when there is nothing to do."""

    check: str
    level: Level
    text: str
    next_step: str = ""
