"""From what happened to records, in the order in which things happened.

Called where it happens, on the event loop: what a decision went by is at hand there, and the same work costs a thread that
comes to it later twice as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import attrgetter, is_not
from types import MappingProxyType
from typing import Any

from router.decision import Choice, Decision, Facts
from router.ledger import records
from router.ledger.receipts import Receipt
from router.ledger.shapes import FACTS, VIEW
from router.placement.targets import Load, Membership, View
from router.policy import KeyGrant
from router.residency.label import Label

_facts_of = attrgetter(*FACTS)
_view_of = attrgetter(*VIEW)
_MOST_LOADS = 64
"""Loads in one record: an entry of the log has at most 65,535 bytes."""
_SNAPSHOT_EVERY = 512
"""After so many decisions all loads are written anew, so that pruning and reading from the middle are possible."""
_REMEMBERED = 4096

_NOTHING: dict[int, Load] = {}

NO_SOURCES: Mapping[str, str] = MappingProxyType({})
KeepBlob = Callable[[bytes], str]
Made = tuple[str, str, Any]
"""Event, id and data of a record."""


class Recorder:
    """Makes records of decisions and receipts; remembers what the log already says, so that it is said once.

    Args:
        keep_blob: has bytes kept durably and returns their hash; it does not wait for the disk.
        label_text: a label in names, under an epoch that `policy` was not told of.
    """

    def __init__(self, keep_blob: KeepBlob, label_text: Callable[[Any], str]) -> None:
        self._keep_blob = keep_blob
        self._label_text = label_text
        self._label_texts: dict[str, Callable[[Any], str]] = {}
        self._known_labels: dict[Label, str] = {}
        self._labels_epoch = ""
        self.forget()

    def forget(self) -> None:
        """Say everything anew from here on: records were lost, or the log is another."""
        self._grants: dict[int, tuple[KeyGrant, str]] = {}
        self._membership: Membership | None = None
        self._members = ""
        self._loads: Sequence[Load] = ()
        self._since_snapshot = _SNAPSHOT_EVERY

    def policy(self, epoch: str, label_text: Callable[[Any], str]) -> None:
        """From here on decisions are made under this epoch, and its labels read so."""
        self._label_texts[epoch] = label_text
        self._labels_epoch = ""
        if len(self._label_texts) > _REMEMBERED:
            del self._label_texts[next(iter(self._label_texts))]

    def decided(
        self, facts: Facts, epoch: str, view: View, decision: Decision, now: float, sources: Mapping[str, str] = NO_SOURCES
    ) -> list[Made]:
        """The records of one decision, those it refers to first."""
        made: list[Made] = []
        if view.membership is not self._membership:
            self._tell_members(view.membership, made)
        known = self._grants.get(id(facts.key)) or self._tell_grant(facts.key, made)
        changed = self._changed_loads(view.loads, made)
        choice = decision.chosen
        given = (
            epoch,
            known[1],
            self._members,
            now,
            _facts_of(facts),
            _view_of(view),
            changed,
            self._label(facts.label, epoch),
            sources if type(sources) is dict else dict(sources),
        )
        answered = _refused(decision) if choice is None else _chosen(choice, decision.saturated)
        made.append((records.DECIDE, facts.request_id, given + answered))  # as `records.DecideData`
        return made

    def _tell_members(self, membership: Membership, made: list[Made]) -> None:
        blob = self._keep_blob(records.pack(membership.targets))
        made.append((records.MEMBERS, "", {"blob": blob, "targets": len(membership.targets)}))
        self._membership, self._members = membership, blob
        self._since_snapshot = _SNAPSHOT_EVERY

    def _tell_grant(self, grant: KeyGrant, made: list[Made]) -> tuple[KeyGrant, str]:
        blob = self._keep_blob(records.pack(grant))
        made.append((records.GRANT, grant.id, {"blob": blob, "tenant": grant.tenant}))
        if len(self._grants) >= _REMEMBERED:
            self._grants.clear()
        known = self._grants[id(grant)] = (grant, blob)
        return known

    def _label(self, label: Label, epoch: str) -> str:
        """A label in the names of its epoch."""
        if epoch != self._labels_epoch or len(self._known_labels) >= _REMEMBERED:
            self._labels_epoch = epoch
            self._known_labels.clear()
        text = self._known_labels.get(label)
        if text is None:
            text = self._known_labels[label] = self._label_texts.get(epoch, self._label_text)(label)
        return text

    def _changed_loads(self, loads: Sequence[Load], made: list[Made]) -> dict[int, Load]:
        """The loads that differ from those recorded last, by index; none when it is time to record all anew, before it."""
        before = self._loads
        self._since_snapshot += 1
        if self._since_snapshot <= _SNAPSHOT_EVERY and len(loads) == len(before):
            if loads is before:
                return _NOTHING
            changed = dict(compress(enumerate(loads), map(is_not, loads, before)))
            if len(changed) <= _MOST_LOADS:
                self._loads = loads
                return changed
        self._since_snapshot = 1
        for start in range(0, max(1, len(loads)), _MOST_LOADS):
            part = loads[start : start + _MOST_LOADS]
            made.append((records.LOADS, "", (start, len(loads), part)))
        self._loads = loads
        return _NOTHING


def _chosen(choice: Choice, saturated: bool) -> tuple[Any, ...]:
    """From `target` to `saturated`, where a target was chosen."""
    target = choice.target
    return (
        target.id,
        target.incarnation,
        target.zone,
        target.kind,
        choice.model,
        choice.reason,
        choice.predicted_ttft_s,
        choice.cost_usd,
        "",
        0,
        saturated,
    )


def _refused(decision: Decision) -> tuple[Any, ...]:
    """From `target` to `saturated`, where none was."""
    assert decision.refusal is not None
    return "", "", "", "", "", "", 0.0, 0.0, decision.refusal.code, decision.refusal.status, decision.saturated


_ELSEWHERE = {"sources": "label_sources", "tier": "complexity_tier", "score": "complexity_score"}
end_data: Callable[[Receipt], tuple[Any, ...]] = attrgetter(
    *(_ELSEWHERE.get(name, name) for name in records.EndData.__struct_fields__)
)
"""The record of a receipt, as `records.EndData`."""
