"""From samples to records: one plain dictionary per system and case, medians over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from . import bodies, load, mock_engine, systems
from .run import Outcome, Sample

Row = dict[str, Any]
_LATENCIES = ("alone_p50_ms", "alone_p99_ms", "p50_ms", "p99_ms")


def rows(outcome: Outcome) -> list[Row]:
    """The result as plain records.

    `cpu_us_per_request`, `p50_ms`, `p99_ms` and `rps` are those under load, the first of `cpu_connections` and the others of
    `connections`; `alone_...` those of one connection;
    `added_...` what is more than at the engine itself; `cpu_us_per_chunk` is what a stream costs more than a JSON answer
    of the same prompt, shared out over its chunks.
    """
    made = [
        _row(outcome, system, case, samples)
        for (system, case), samples in outcome.samples.items()
        if (system, case) not in outcome.wrong
    ]
    _add_latencies(made)
    _add_chunks(made)
    return made


def _middle(values: Iterable[float], digits: int) -> float:
    return round(statistics.median(values), digits)


def _row(outcome: Outcome, system: str, name: str, samples: list[Sample]) -> Row:
    plan, case = outcome.plan, bodies.find(name)
    cpu = [sample.cpu_us for sample in samples]
    return {
        "system": system,
        "case": name,
        "cpu_us_per_request": _middle(cpu, 1),
        "p50_ms": _middle((sample.busy.p50_ms for sample in samples), 3),
        "p99_ms": _middle((sample.busy.p99_ms for sample in samples), 3),
        "rps": _middle((sample.busy.rps for sample in samples), 1),
        "cpu_us_min": round(min(cpu), 1),
        "cpu_us_max": round(max(cpu), 1),
        "alone_p50_ms": _middle((sample.alone.p50_ms for sample in samples), 3),
        "alone_p99_ms": _middle((sample.alone.p99_ms for sample in samples), 3),
        "rss_mb": _middle((sample.rss_mb for sample in samples), 1),
        "requests": sum(sample.loaded.requests for sample in samples),
        "rounds": len(samples),
        "targets": case.targets or plan.targets,
        "prompt_tokens": case.tokens,
        "connections": plan.connections if samples[0].crowd else plan.load_of(system)[0],
        "cpu_connections": plan.load_of(system)[0],
        "prompts": plan.prompts,
        "load": load.generator(),
        **({"interpreter": outcome.interpreter} if system == "tidegate" and outcome.interpreter else {}),
    }


def _add_latencies(made: list[Row]) -> None:
    """What a system adds to the engine's own latency, at one connection and under load."""
    floor = {row["case"]: row for row in made if row["system"] == systems.DIRECT}
    for row in made:
        if own := floor.get(bodies.find(row["case"]).compared.partition("@")[0]):
            for name in _LATENCIES:
                if name.startswith("alone") or row["connections"] == own["connections"]:
                    row["added_" + name] = round(row[name] - own[name], 3)


def _add_chunks(made: list[Row]) -> None:
    whole = {(row["system"], row["targets"]): row["cpu_us_per_request"] for row in made if row["case"].split("@")[0] == "json"}
    for row in made:
        cost = whole.get((row["system"], row["targets"]))
        if bodies.find(row["case"]).stream and cost is not None:
            row["cpu_us_per_chunk"] = round((row["cpu_us_per_request"] - cost) / mock_engine.CHUNKS, 2)
