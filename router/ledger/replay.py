"""Decisions read back from a log and made again: the same `decide`, on what it was given then."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_type_hints

import msgspec

from router.config import Config, ConfigError
from router.decide import decide
from router.decision import Decision, Facts
from router.ledger import records
from router.ledger.policies import read_policy
from router.ledger.reader import LogReader
from router.ledger.records import DecideData, LoadsData, Record, RecordError
from router.ledger.shapes import FACTS, VIEW, named
from router.ledger.tiles import TileError
from router.placement.targets import Load, Membership, Target, View
from router.policy import Policy


class Situation(msgspec.Struct, frozen=True, gc=False):
    """One decision as it was made: what `decide` was given, and what the log says it answered."""

    record: Record
    data: DecideData
    facts: Facts
    config: Config
    policy: Policy
    view: View


class Gap(msgspec.Struct, frozen=True, gc=False):
    """A decision that cannot be made again, and why."""

    record: Record
    reason: str


class Replayer:
    """Reads one log from its beginning and gives every decision in it.

    Args:
        log: the log.
    """

    def __init__(self, log: LogReader) -> None:
        self._log = log
        self._policies: dict[str, tuple[Config, Policy]] = {}
        self._policy_blobs: dict[str, str] = {}
        self._loads: list[Load | None] = []

    def situations(self) -> Iterator[Situation | Gap]:
        """Every decision, in the order in which they were made.

        Raises:
            TileError, RecordError: the log is damaged.
        """
        for record in self._log.records():
            if record.e == records.POLICY:
                data = records.read_data(record)
                self._policy_blobs[data["epoch"]] = data["blob"]
            elif record.e in (records.OPEN, records.LOST):
                self._loads = []
            elif record.e == records.LOADS:
                self._take_loads(records.read_data(record, LoadsData))
            elif record.e == records.DECIDE:
                yield self._situation(record)

    def _take_loads(self, data: LoadsData) -> None:
        if len(self._loads) != data.count or data.start == 0:
            self._loads = [None] * data.count
        part = msgspec.msgpack.decode(data.loads, type=list[Load])
        self._loads[data.start : data.start + len(part)] = part

    def _situation(self, record: Record) -> Situation | Gap:
        data = records.read_data(record, DecideData)
        try:
            config, policy = self._policy(data.epoch)
            membership = _membership(self._log, data.members)
            for index, load in msgspec.msgpack.decode(data.loads, type=dict[int, Load]).items():
                self._loads[index] = load
            loads = tuple(load for load in self._loads if load is not None)
            if len(loads) != len(membership.targets):
                return Gap(record, "the loads before it are missing (records were lost or pruned)")
            facts = _facts(record.id, data, self._log.blob(data.grant))
            return Situation(record, data, facts, config, policy, _view(data.view, membership, loads))
        except (ConfigError, TileError, RecordError, msgspec.DecodeError, LookupError, TypeError) as error:
            return Gap(record, str(error) or type(error).__name__)

    def _policy(self, epoch: str) -> tuple[Config, Policy]:
        found = self._policies.get(epoch)
        if found is None:
            blob = self._policy_blobs.get(epoch)
            if blob is None:
                raise RecordError(f"no policy of epoch {epoch} is recorded before it")
            found = self._policies[epoch] = read_policy(self._log.blob(blob), epoch)
        return found


@lru_cache(maxsize=256)
def _membership(log: LogReader, blob: str) -> Membership:
    return Membership(0, msgspec.msgpack.decode(log.blob(blob), type=tuple[Target, ...]))


def _facts(request_id: str, data: DecideData, grant: bytes) -> Facts:
    whole = msgspec.msgpack.encode({**named(data.facts, FACTS), "request_id": request_id, "key": msgspec.Raw(grant)})
    return msgspec.msgpack.decode(whole, type=Facts)


_VIEW_TYPES = get_type_hints(View)


def _view(values: tuple[msgspec.Raw, ...], membership: Membership, loads: tuple[Load, ...]) -> View:
    parts = named(values, VIEW)
    rest = {name: msgspec.msgpack.decode(part, type=_VIEW_TYPES[name]) for name, part in parts.items() if name in _VIEW_TYPES}
    return View(membership=membership, loads=loads, **rest)


def decide_again(situation: Situation) -> Decision:
    """The same decision, made now."""
    return decide(situation.facts, situation.policy, situation.view, situation.data.now)


def differences(decision: Decision, recorded: DecideData) -> list[str]:
    """In what a decision differs from the one that was recorded; empty when they agree."""
    choice, refusal = decision.chosen, decision.refusal
    pairs: list[tuple[str, Any, Any]] = [
        ("incarnation", "" if choice is None else choice.target.incarnation, recorded.incarnation),
        ("model", "" if choice is None else choice.model, recorded.model),
        ("reason", "" if choice is None else choice.reason, recorded.reason),
        ("ttft_s", 0.0 if choice is None else choice.predicted_ttft_s, recorded.ttft_s),
        ("cost_usd", 0.0 if choice is None else choice.cost_usd, recorded.cost_usd),
        ("code", "" if refusal is None else refusal.code, recorded.code),
        ("status", 0 if refusal is None else refusal.status, recorded.status),
        ("saturated", decision.saturated, recorded.saturated),
    ]
    return [f"{name}: {was!r} then, {is_now!r} now" for name, is_now, was in pairs if is_now != was]
