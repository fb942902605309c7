"""Finding records, and putting what belongs to one request together."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from router.ledger import records
from router.ledger.policies import external_zones
from router.ledger.reader import LogReader, merged
from router.ledger.receipts import CACHE_HIT
from router.ledger.records import Record
from router.ledger.tiles import TileError

_SPAN = re.compile(r"(\d+)([smhdw])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Query(msgspec.Struct, frozen=True):
    """What to look for; empty values ask for nothing. Times are UNIX seconds, `until` is not included."""

    id: str = ""
    event: str = ""
    since: float = 0.0
    until: float = float("inf")
    fields: dict[str, str] = {}
    """Values of the record's data, by name: `key`, `tenant`, `target`, `code`, `label`, `model`, ..."""

    def wants(self, record: Record) -> bool:
        """True when the envelope fits."""
        return (
            self.since <= record.t < self.until
            and (not self.id or record.id == self.id)
            and (not self.event or record.e == self.event)
        )


def parse_time(text: str, now: float) -> float:
    """UNIX seconds of an ISO date or time (UTC unless it says otherwise), or of `30m`, `24h`, `7d` before `now`.

    Raises:
        ValueError: it is neither.
    """
    if found := _SPAN.match(text):
        return now - int(found[1]) * _SECONDS[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"`{text}` is no time: give 2026-11-22, 2026-11-22T05:00, or a span such as 24h") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def search(logs: list[LogReader], query: Query) -> Iterator[dict[str, Any]]:
    """The records that fit, merged by time, as plain data with the name of their log.

    Raises:
        TileError, RecordError: a log is damaged.
    """
    for log, record in merged(logs):
        if not query.wants(record):
            continue
        plain = records.to_plain(record)
        if all(str(_deep(plain, name)) == value for name, value in query.fields.items()):
            yield {"log": log.root.name, **plain}


def _deep(plain: dict[str, Any], name: str) -> Any:
    """A value by name; the targets of all attempts count as a record's target."""
    if name in plain:
        return plain[name]
    attempts = plain.get("attempts")
    if isinstance(attempts, list) and attempts:
        return attempts[-1].get(name)
    return None


class Handled(msgspec.Struct):
    """One request: everything the logs say of it, for reports."""

    log: str
    id: str
    time: float = 0.0
    ended: float = 0.0
    key: str = ""
    tenant: str = ""
    endpoint: str = ""
    requested_model: str = ""
    model: str = ""
    label: str = ""
    epoch: str = ""
    target: str = ""
    zone: str = ""
    zones: tuple[str, ...] = ()
    """Every zone it was sent to (without a recorded end: may have been), in order: a try that failed may have taken it to another
    than `zone`, the last one."""
    outside: tuple[str, ...] = ()
    """The targets outside the cluster that were chosen for it or that it was about to be sent to, as `target (zone)`."""
    intents: int = 0
    status: int = 0
    code: str = ""
    reason: str = ""
    attempts: int = 0
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1
    cache: str = ""
    """`hit` when the response cache answered: its tokens were not computed for this request, and nothing left for it."""
    complete: bool = False
    """Whether its end is recorded; one without was cut off by a crash, or is still at work."""
    mode: str = ""
    """`shadow` or `label` for requests of the router's own, which nobody asked for; see the receipt."""

    @property
    def external(self) -> bool:
        """Whether a target outside the cluster was chosen for it."""
        return bool(self.outside)


def requests(logs: list[LogReader], since: float = 0.0, until: float = float("inf")) -> Iterator[Handled]:
    """Every request in a span of time, in the order of their ends; those without one last.

    Raises:
        TileError, RecordError: a log is damaged.
    """
    begun: dict[tuple[str, str], Handled] = {}
    external: dict[str, frozenset[str]] = {}
    for log, record in merged(logs):
        if record.e == records.POLICY:
            policy = records.read_data(record)
            with contextlib.suppress(TileError):  # without the blob, what went through the egress is known all the same
                external[policy["epoch"]] = external_zones(log.blob(policy["blob"]))
        if record.e not in (records.DECIDE, records.INTENT, records.END, records.REFUSE) or not since <= record.t < until:
            continue
        key = (log.root.name, record.id)
        handled = begun.get(key) or begun.setdefault(key, Handled(log.root.name, record.id, record.t))
        if record.e == records.DECIDE:
            decided = records.read_data(record, records.DecideData)
            _take_decision(handled, decided, external.get(decided.epoch, frozenset()))
        elif record.e == records.INTENT:
            _take_intent(handled, records.read_data(record, records.IntentData))
        elif record.e == records.REFUSE:
            refused = records.read_data(record, records.RefuseData)
            handled.ended, handled.complete = record.t, True
            handled.key, handled.tenant, handled.endpoint = refused.key, refused.tenant, refused.endpoint
            handled.status, handled.code = refused.status, refused.code
            yield begun.pop(key)
        else:
            _take_end(handled, records.read_data(record, records.EndData))
            yield begun.pop(key)
    yield from begun.values()


def _take_decision(handled: Handled, data: records.DecideData, external: frozenset[str]) -> None:
    handled.label, handled.epoch, handled.reason = data.label, data.epoch, data.reason
    handled.model, handled.target, handled.zone = data.model, data.target, data.zone
    if data.target:
        handled.zones = tuple(dict.fromkeys((*handled.zones, data.zone)))
    if data.kind == "cloud" or data.zone in external:  # earlier versions had servers in external zones, too
        _add_outside(handled, data.target, data.zone)


def _add_outside(handled: Handled, target: str, zone: str) -> None:
    handled.outside = tuple(dict.fromkeys((*handled.outside, f"{target} ({zone})")))


def _take_intent(handled: Handled, data: records.IntentData) -> None:
    handled.intents += 1
    _add_outside(handled, data.target, data.zone)
    handled.key, handled.tenant, handled.label = data.key, data.tenant, data.label


def _take_end(handled: Handled, data: records.EndData) -> None:
    attempts = data.attempts
    handled.time, handled.ended, handled.complete = data.received, data.ended, True
    handled.key, handled.tenant, handled.endpoint = data.key, data.tenant, data.endpoint
    handled.mode = data.mode
    handled.requested_model, handled.label, handled.epoch = data.requested_model, data.label, data.epoch
    handled.status, handled.code, handled.attempts = data.status, data.code, len(attempts)
    handled.prompt_tokens, handled.completion_tokens = data.prompt_tokens, data.completion_tokens
    handled.cached_tokens, handled.cache = data.cached_tokens, data.cache
    if data.cache == CACHE_HIT and not handled.intents:
        handled.outside = ()
    handled.zones = tuple(dict.fromkeys(attempt.zone for attempt in attempts))
    if attempts:
        last = attempts[-1]
        handled.target, handled.zone, handled.model = last.target, last.zone, last.model
        handled.reason = last.reason
