"""The requests that a plan is tried with: from a public trace, made up, or what the audit log recorded."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cluster.simulation.engine import SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS
from cluster.simulation.trace import Row, link_turns, make_documents_trace, make_tools_trace, read_trace
from router.identity.priority import CLASSES
from router.ledger import records
from router.ledger.policies import read_policy
from router.ledger.reader import LogReader
from router.ledger.records import DecideData, EndData
from router.ledger.shapes import FACTS, VIEW
from router.residency.guard import Place
from tidegate.planfile import Match, PlanError, PlanFile

MADE_UP: dict[str, Callable[[], list[Row]]] = {"tools": make_tools_trace, "documents": make_documents_trace}
"""Traces that need no file."""
_LEAST = 50
_REMEMBERED = 200
"""Earlier requests of one key that a later one's prefix is looked for among."""
_DEMAND = frozenset({0, 200, 429, 503, 504, 499})
"""Statuses of requests that wanted an answer from an engine; others (a wrong model, a body too long) asked for nothing."""


@dataclass(frozen=True)
class Recorded:
    """One request of the audit log."""

    at: float
    key: str
    tenant: str
    priority: str
    model: str
    label: str
    prompt: int
    answer: int
    """-1: it was not answered, or nobody counted."""
    held: int
    """Tokens of the prompt that some engine had cached."""
    spill: bool = False
    """Whether its key may send requests outside."""


@dataclass
class Traffic:
    """Requests in order of arrival, and to which class each belongs."""

    rows: list[Row]
    classes: list[int]
    notes: list[str] = field(default_factory=list)

    def that_fits(self, most: Sequence[int]) -> Traffic:
        """The same without requests that no engine can hold: vLLM refuses those at once, and the rest of a log goes on.

        Args:
            most: tokens of prompt and answer that an engine of each class holds.

        Raises:
            PlanError: nothing is left.
        """
        kept = [i for i, (_, prompt, answer, _) in enumerate(self.rows) if prompt + answer <= most[self.classes[i]]]
        if len(kept) == len(self.rows):
            return self
        if not kept:
            raise PlanError(f"every request is longer than an engine can hold: {max(most)} tokens")
        note = f"left out: {len(self.rows) - len(kept)} of {len(self.rows)} requests, longer than an engine can hold"
        return Traffic([self.rows[i] for i in kept], [self.classes[i] for i in kept], [*self.notes, note])

    def requests(self) -> list[SimulatedRequest]:
        """New requests for one run: a run changes them."""
        return link_turns(self.rows)

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.rows[-1][0] - self.rows[0][0]


def read_rows(trace: str) -> list[Row]:
    """The rows of a file, or of a made-up trace by name.

    Raises:
        PlanError: there is no such file or name, or it holds too few requests to say anything.
        TraceError: the file is malformed.
    """
    if trace in MADE_UP:
        return MADE_UP[trace]()
    path = Path(trace)
    if not path.is_file():
        raise PlanError(f"no trace {trace}: name a file, or one of {', '.join(MADE_UP)}")
    rows = read_trace(path)
    if len(rows) < _LEAST:
        raise PlanError(f"{trace} has {len(rows)} requests; at least {_LEAST} are needed for shares of requests to mean anything")
    return rows


def share_out(rows: list[Row], plan: PlanFile, seed: int = 0) -> Traffic:
    """A trace that does not say whose requests it has: whole conversations go to classes by their shares.

    Raises:
        PlanError: the classes' shares do not add up.
    """
    shares = plan.shares()
    draw = random.Random(seed)
    classes = [-1] * len(rows)
    numbers = range(len(shares))
    for request in link_turns(rows):
        if classes[request.index] < 0:
            classes[request.index] = draw.choices(numbers, shares)[0]
        for child in request.children:
            classes[child.index] = classes[request.index]
    blocks = [block for row in rows for block in row[3]]
    alone = len(set(blocks)) == len(blocks)
    return Traffic(rows, classes, ["the trace does not say what prompts share, so every one is computed whole"] if alone else [])


# -- the audit log


def read_log(logs: Iterable[LogReader], since: float = 0.0, until: float = float("inf")) -> list[Recorded]:
    """The requests that routers decided, in order of arrival.

    Args:
        logs: one a router.
        since: UNIX time of the first to take.
        until: UNIX time of the first not to take.

    Raises:
        TileError, RecordError: a log is damaged.
    """
    found: list[Recorded] = []
    for log in logs:
        firsts: dict[str, DecideData] = {}
        for record in log.records():
            if record.e == records.DECIDE:
                known = firsts.get(record.id)
                # One that waited for an engine to come up was decided before there was a model to name.
                if (known is None and since <= record.t < until) or (known is not None and not known.model):
                    firsts[record.id] = records.read_data(record, DecideData)
            elif record.e == records.END:
                first = firsts.pop(record.id, None)
                end = None if first is None else records.read_data(record, EndData)
                if first is not None and end is not None and end.status in _DEMAND and end.cache != "hit":
                    spill = bool(msgspec.msgpack.decode(log.blob(first.grant)).get("spill"))
                    found.append(_recorded(first, end, spill))
    return sorted(found, key=lambda request: request.at)


def external_zones(logs: Iterable[LogReader]) -> set[str]:
    """The zones outside the cluster, by every policy that a log holds.

    Raises:
        TileError, RecordError: a log is damaged.
    """
    found: set[str] = set()
    for log in logs:
        for record in log.records():
            if record.e == records.POLICY:
                data = records.read_data(record)
                config, _ = read_policy(log.blob(data["blob"]), data["epoch"])
                found |= {name for name, zone in config.zones.items() if zone.external}
    return found


def _recorded(first: DecideData, end: EndData, spill: bool) -> Recorded:
    facts = records.values_of(first.facts, FACTS)
    cached = dict(records.values_of(first.view, VIEW).get("cached") or {})
    prompt = end.prompt_tokens if end.prompt_tokens > 0 else int(facts.get("prompt_tokens", 0))
    held = max([int(tokens) for tokens in cached.values()] + [end.cached_tokens, 0])
    return Recorded(
        at=end.received,
        key=end.key,
        tenant=end.tenant,
        priority=CLASSES[int(facts.get("priority", 1))],
        model=first.model or end.requested_model,
        label=first.label,
        prompt=max(1, prompt),
        answer=end.completion_tokens,
        held=min(held, max(0, prompt - 1)),
        spill=spill,
    )


def from_log(recorded: Sequence[Recorded], plan: PlanFile) -> Traffic:
    """Recorded requests as traffic.

    The log has no prompts, but how many tokens of each were cached somewhere. So many leading blocks are taken from the earlier
    request of the same key and model that fits best: reuse is what it was, which request it came from is a guess. Answers nobody
    counted get their model's median length.

    Raises:
        PlanError: there are too few requests, or some that no class matches.
    """
    if len(recorded) < _LEAST:
        raise PlanError(f"the log has {len(recorded)} requests in that time; at least {_LEAST} are needed")
    classes = [_class_of(request, plan) for request in recorded]
    if missing := [request for request, number in zip(recorded, classes, strict=True) if number < 0]:
        example = missing[0]
        raise PlanError(
            f"{len(missing)} of {len(recorded)} requests belong to no class, e.g. one of key {example.key}, tenant "
            f"{example.tenant}, priority {example.priority}, model {example.model}: add a class, or widen a `match`"
        )
    usual = _usual_answers(recorded)
    rows: list[Row] = []
    earlier: dict[tuple[str, str], deque[tuple[int, tuple[int, ...]]]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
    fresh = 0
    for request in recorded:
        answer = request.answer if request.answer > 0 else usual.get(request.model, usual[""])
        others = earlier[request.key, request.model]
        head = _head(request.held, others)
        new = max(0, request.prompt // BLOCK_TOKENS + 1 - len(head))
        blocks = (*head, *range(fresh, fresh + new))
        fresh += new
        rows.append((request.at - recorded[0].at, request.prompt, answer, blocks))
        others.append((request.prompt + answer, blocks))
    guessed = sum(request.answer <= 0 for request in recorded)
    notes = ["which request a cached prefix came from is not in the log; how much was cached is"]
    if guessed:
        notes.append(f"{guessed} answers were not counted and got the usual length")
    return Traffic(rows, classes, notes)


def _class_of(request: Recorded, plan: PlanFile) -> int:
    def fits(match: Match) -> bool:
        pairs = (
            (match.keys, request.key),
            (match.tenants, request.tenant),
            (match.priorities, request.priority),
            (match.models, request.model),
            (match.labels, request.label),
        )
        return all(not allowed or value in allowed for allowed, value in pairs)

    return next((i for i, wanted in enumerate(plan.classes) if fits(wanted.match)), -1)


def _head(held: int, earlier: Iterable[tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
    """The leading blocks of the earlier request whose length is next to what was cached; the latest of equal ones."""
    wanted = (held + BLOCK_TOKENS // 2) // BLOCK_TOKENS
    best: tuple[int, ...] = ()
    distance = float("inf")
    for length, blocks in earlier:
        if wanted and len(blocks) >= wanted and abs(length - held) <= distance:
            best, distance = blocks[:wanted], abs(length - held)
    return best


def _usual_answers(recorded: Sequence[Recorded]) -> dict[str, int]:
    """The median answer by model; "" of all."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for request in recorded:
        if request.answer > 0:
            lengths[request.model].append(request.answer)
            lengths[""].append(request.answer)
    usual = {model: sorted(counts)[len(counts) // 2] for model, counts in lengths.items()}
    return {"": 200, **usual}


def plan_from_log(
    recorded: Sequence[Recorded], external: set[str], profiles: dict[str, str], limits: dict[str, float | None]
) -> dict[str, Any]:
    """A plan file, as plain data, for what the log shows: a class for each label, priority and model.

    Args:
        recorded: the requests.
        external: which zones are outside the cluster.
        profiles: the engine profile of each model.
        limits: `ttft_ms`, `tpot_ms` and `goal` of all classes.

    Raises:
        PlanError: a model has no profile, or nothing was recorded.
    """
    if not recorded:
        raise PlanError("the log has no request in that time that asked an engine for something")
    groups: dict[tuple[str, str, str], list[Recorded]] = defaultdict(list)
    for request in recorded:
        groups[request.label, request.priority, request.model].append(request)
    models = sorted({model for _, _, model in groups})
    if missing := [model for model in models if model not in profiles]:
        raise PlanError(f"no engine profile for {', '.join(missing)}: give --profile {missing[0]}=NAME")
    inside = {label: _zones_of(label) for label, _, _ in groups}
    names = {label: f"{'-'.join(zones) or 'nowhere'}-{number}" for number, (label, zones) in enumerate(sorted(inside.items()))}
    zones_by_model = {
        model: sorted({zone for label, _, used in groups if used == model for zone in inside[label]} - external)
        for model in models
    }
    return {
        "zones": {zone: {"external": zone in external} for zones in inside.values() for zone in zones},
        "labels": {names[label]: zones for label, zones in inside.items()},
        "models": [{"id": model, "profile": profiles[model], "zones": zones_by_model[model]} for model in models],
        "classes": [
            {
                "name": f"{names[label]}-{priority}-{number}"[-64:].lstrip("-"),
                "model": model,
                "label": names[label],
                "priority": priority,
                "spill": any(request.spill for request in members),
                "match": {"labels": [label], "priorities": [priority], "models": [model]},
                **{name: value for name, value in limits.items() if value is not None},
            }
            for number, ((label, priority, model), members) in enumerate(sorted(groups.items()))
        ],
    }


def _zones_of(label: str) -> list[str]:
    """The zones that may both process and store under a recorded label."""
    place = Place.from_text(label)
    return [zone for zone in place.process if zone in place.store]
