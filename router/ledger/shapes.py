"""What stands in a record as an array, by place: the names an independent reader gives the values.

Arrays, because the names are half of a record's bytes otherwise, and every byte is encoded, sent, hashed and written. New fields
are added at the end only; a shorter record, of an earlier build, lacks them. The names are written out here, not taken from the
structs they belong to: the process that writes the log needs none of those. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

Shape = tuple[str, ...]


class Attempt(msgspec.Struct, gc=False, array_like=True):
    """One try at one target. Times are UNIX seconds; 0 means it did not come to that. Token counts are -1 while unknown; those
    of an attempt that broke or was given up are of what had come by then."""

    target: str
    incarnation: str
    zone: str
    model: str
    reason: str
    started: float
    first_byte: float = 0.0
    ended: float = 0.0
    ending: str = ""
    status: int = 0
    failure: str = ""
    prompt_tokens: int = -1
    completion_tokens: int = -1


class StepRecord(msgspec.Struct, gc=False, array_like=True):
    """One model asked within a request: what for, what became of its answer, what it used. `confidence` is -1 and `cost_usd`
    None while unknown."""

    name: str
    model: str
    verdict: str
    confidence: float
    started: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None = None
    estimated: bool = False
    """The step was cut and nobody counted: an estimate of its prompt, and the tokens that had come."""


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
VIEW: Shape = ("spilling", "spend_left_usd", "cached", "output_tokens", "margin_s", "pace_share", "adapter_s", "crowd_share")
"""`router.placement.targets.View` without membership and loads, which have records of their own."""
LABEL: Shape = ("process", "store", "duties")
COMPLEXITY: Shape = ("tier", "score", "reasons", "model", "pinned", "context", "propensity", "trial")
LOAD: Shape = (
    "inflight",
    "unstarted",
    "unstarted_tokens",
    "foreign",
    "foreign_waiting",
    "clear_at",
    "queue_s",
    "context_tokens",
    "kv_tokens",
    "work_s",
    "work_at",
    "ttft_s",
    "service_s",
    "prefill_tps",
    "slowdown",
    "pace_slowdown",
    "profile",
    "failures",
    "down_until",
    "signals",
    "breaker",
    "long_work_s",
    "fresh",
    "fresh_at",
    "throttle",
    "harm",
    "foreign_weight",
    "begun_at",
    "silent_s",
)
SIGNALS: Shape = (
    "sampled_at",
    "running",
    "waiting",
    "kv_usage",
    "gpu_utilisation",
    "gpu_memory",
    "gpu_temperature_c",
    "adapters",
    "adapter_slots",
    "preemptions",
    "gpu_power",
    "gpu_throttle",
    "gpu_faults",
    "deferred",
    "keeps_prefixes",
    "cache_tokens",
    "silent_s",
)
BREAKER: Shape = (
    "consecutive",
    "good",
    "bad",
    "counted_at",
    "pace",
    "paces",
    "judged_at",
    "cause",
    "trips",
    "opened_at",
    "until",
    "probing",
)

_WITHIN = {"facts": FACTS, "view": VIEW, "label": LABEL, "complexity": COMPLEXITY, "signals": SIGNALS, "breaker": BREAKER}
_MANY = {"attempts": Attempt.__struct_fields__, "steps": StepRecord.__struct_fields__, "loads": LOAD}


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
