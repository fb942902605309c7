"""From what happened to records: called by the log's writer thread, in the order in which things happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from router.decision import Decision, Facts
from router.ledger import records
from router.ledger.receipts import Receipt
from router.placement.targets import Load, Membership, View
from router.policy import KeyGrant

_FACTS = tuple(name for name in Facts.__struct_fields__ if name not in ("key", "request_id"))
_VIEW = tuple(name for name in View.__struct_fields__ if name not in ("membership", "loads"))
_MOST_LOADS = 64
"""Loads in one record: an entry of the log has at most 65,535 bytes."""
_SNAPSHOT_EVERY = 512
"""After so many decisions all loads are written anew, so that pruning and reading from the middle are possible."""
_REMEMBERED = 4096

NO_SOURCES: Mapping[str, str] = MappingProxyType({})
PutBlob = Callable[[bytes], str]


class Recorder:
    """Makes records of decisions and receipts; remembers what the log already says, so that it is said once.

    Args:
        put_blob: keeps bytes durably and returns their hash.
        label_text: a label in names.
    """

    def __init__(self, put_blob: PutBlob, label_text: Callable[[Any], str]) -> None:
        self._put_blob = put_blob
        self._label_text = label_text
        self.forget()

    def forget(self) -> None:
        """Say everything anew from here on: records were lost, or the log is another."""
        self._grants: dict[int, tuple[KeyGrant, str]] = {}
        self._membership: Membership | None = None
        self._members = ""
        self._loads: list[Load] = []
        self._since_snapshot = _SNAPSHOT_EVERY

    def decided(
        self, facts: Facts, epoch: str, view: View, decision: Decision, now: float, sources: Mapping[str, str] = NO_SOURCES
    ) -> Iterable[tuple[str, str, Any]]:
        """The records of one decision as (event, id, data), those it refers to first."""
        if view.membership is not self._membership:
            blob = self._put_blob(records.pack(view.membership.targets))
            yield records.MEMBERS, "", {"blob": blob, "targets": len(view.membership.targets)}
            self._membership, self._members = view.membership, blob
            self._since_snapshot = _SNAPSHOT_EVERY
        known = self._grants.get(id(facts.key))
        if known is None:
            blob = self._put_blob(records.pack(facts.key))
            yield records.GRANT, facts.key.id, {"blob": blob, "tenant": facts.key.tenant}
            if len(self._grants) >= _REMEMBERED:
                self._grants.clear()
            known = self._grants[id(facts.key)] = (facts.key, blob)
        yield from self._load_snapshots(view)
        yield records.DECIDE, facts.request_id, self._decide_data(facts, epoch, view, decision, now, known[1], sources)

    def _load_snapshots(self, view: View) -> Iterable[tuple[str, str, Any]]:
        """All loads anew, where it is time or too much has changed for one record."""
        loads = view.loads
        self._since_snapshot += 1
        whole = self._since_snapshot > _SNAPSHOT_EVERY or len(loads) != len(self._loads)
        if not whole and len(loads) > _MOST_LOADS:
            whole = sum(a is not b for a, b in zip(loads, self._loads, strict=True)) > _MOST_LOADS
        if not whole:
            return
        self._since_snapshot = 1
        for start in range(0, max(1, len(loads)), _MOST_LOADS):
            part = loads[start : start + _MOST_LOADS]
            yield records.LOADS, "", records.LoadsData(start, len(loads), msgspec.Raw(records.pack(part)))
        self._loads = list(loads)

    def _decide_data(
        self, facts: Facts, epoch: str, view: View, decision: Decision, now: float, grant: str, sources: Mapping[str, str]
    ) -> records.DecideData:
        before, changed = self._loads, {}
        for index, load in enumerate(view.loads):
            if load is not before[index]:
                changed[index] = before[index] = load
        choice, refusal = decision.chosen, decision.refusal
        target = None if choice is None else choice.target
        return records.DecideData(
            epoch=epoch,
            grant=grant,
            members=self._members,
            now=now,
            facts=msgspec.Raw(records.pack({name: getattr(facts, name) for name in _FACTS})),
            view=msgspec.Raw(records.pack({name: getattr(view, name) for name in _VIEW})),
            loads=msgspec.Raw(records.pack(changed)),
            label=self._label_text(facts.label),
            sources=dict(sources),
            target="" if target is None else target.id,
            incarnation="" if target is None else target.incarnation,
            zone="" if target is None else target.zone,
            kind="" if target is None else target.kind.value,
            model="" if choice is None else choice.model,
            reason="" if choice is None else choice.reason,
            ttft_s=0.0 if choice is None else choice.predicted_ttft_s,
            cost_usd=0.0 if choice is None else choice.cost_usd,
            code="" if refusal is None else refusal.code,
            status=0 if refusal is None else refusal.status,
            saturated=decision.saturated,
        )


def end_data(receipt: Receipt) -> records.EndData:
    """The record of a receipt."""
    return records.EndData(
        epoch=receipt.epoch,
        key=receipt.key,
        tenant=receipt.tenant,
        endpoint=receipt.endpoint,
        requested_model=receipt.requested_model,
        label=receipt.label,
        sources=receipt.label_sources,
        tier=receipt.complexity_tier,
        score=receipt.complexity_score,
        received=receipt.received,
        ended=receipt.ended,
        status=receipt.status,
        code=receipt.code,
        prompt_tokens=receipt.prompt_tokens,
        completion_tokens=receipt.completion_tokens,
        cached_tokens=receipt.cached_tokens,
        reasoning_tokens=receipt.reasoning_tokens,
        attempts=msgspec.Raw(records.pack(receipt.attempts)),
        trial=receipt.trial,
        mode=receipt.mode,
        steps=msgspec.Raw(records.pack(receipt.steps)),
        cache=receipt.cache,
        waited_ms=receipt.waited_ms,
    )
