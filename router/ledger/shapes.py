"""What stands in a record as an array, by place: the names an independent reader gives the values.

Arrays, because the names are half of a record's bytes otherwise, and every byte is encoded, sent, hashed and written. New fields
are added at the end only; a shorter record, of an earlier build, lacks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.decision import Complexity
from router.ledger.receipts import Attempt, StepRecord
from router.placement.breaker import Breaker
from router.placement.targets import Load, Signals
from router.residency.label import Label

Shape = tuple[str, ...]

FACTS: Shape = (
    "endpoint",
    "model",
    "label",
    "complexity",
    "prompt_bytes",
    "prompt_tokens",
    "max_tokens",
    "excluded",
    "timeout_s",
    "waited_s",
    "priority",
)
"""`router.decision.Facts` without its id, which is the record's, and its key, which is the grant."""
VIEW: Shape = ("spilling", "spend_left_usd", "cached", "output_tokens", "margin_s", "pace_share", "adapter_s")
"""`router.placement.targets.View` without membership and loads, which have records of their own."""

_WITHIN: dict[str, Shape] = {
    "facts": FACTS,
    "view": VIEW,
    "label": Label.__struct_fields__,
    "complexity": Complexity.__struct_fields__,
    "signals": Signals.__struct_fields__,
    "breaker": Breaker.__struct_fields__,
}
_MANY: dict[str, Shape] = {
    "attempts": Attempt.__struct_fields__,
    "steps": StepRecord.__struct_fields__,
    "loads": Load.__struct_fields__,
}


def named(values: Sequence[Any], shape: Shape) -> dict[str, Any]:
    """Values by their names, and so on within them; what a later build added has its place as its name."""
    names = [*shape[: len(values)], *(f"+{place}" for place in range(len(shape), len(values)))]
    return {name: _within(name, value) for name, value in zip(names, values, strict=True)}


def _within(name: str, value: Any) -> Any:
    if name in _WITHIN and isinstance(value, list):
        return named(value, _WITHIN[name])
    if name in _MANY:
        if isinstance(value, dict):
            return {key: named(row, _MANY[name]) for key, row in value.items()}
        return [named(row, _MANY[name]) for row in value]
    return value
