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

import msgspec

from router.decision import Choice, Decision, Facts
from router.ledger import records
from router.ledger.receipts import Receipt
from router.placement.targets import Load, Membership, View
from router.policy import KeyGrant
from router.residency.label import Label


def _part_of(kind: type[Any], *left_out: str) -> tuple[type[Any], Callable[[Any], tuple[Any, ...]]]:
    """A struct with the fields of `kind` less some, and what reads their values: encodes at once, and no field is forgotten.

    Every value is written, also one at its default: what the default means may be another thing when it is read.
    """
    names = [name for name in kind.__struct_fields__ if name not in left_out]
    part = msgspec.defstruct(f"{kind.__name__}Part", [(name, Any) for name in names], frozen=True, gc=False)
    return part, attrgetter(*names)


_Facts, _facts_of = _part_of(Facts, "key", "request_id")
_View, _view_of = _part_of(View, "membership", "loads")
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
            blob = self._keep_blob(records.pack(view.membership.targets))
            made.append((records.MEMBERS, "", {"blob": blob, "targets": len(view.membership.targets)}))
            self._membership, self._members = view.membership, blob
            self._since_snapshot = _SNAPSHOT_EVERY
        known = self._grants.get(id(facts.key))
        if known is None:
            blob = self._keep_blob(records.pack(facts.key))
            made.append((records.GRANT, facts.key.id, {"blob": blob, "tenant": facts.key.tenant}))
            if len(self._grants) >= _REMEMBERED:
                self._grants.clear()
            known = self._grants[id(facts.key)] = (facts.key, blob)
        changed = self._changed_loads(view.loads, made)
        choice = decision.chosen
        data = records.DecideData(  # type: ignore[call-arg]
            epoch,
            known[1],
            self._members,
            now,
            _Facts(*_facts_of(facts)),
            _View(*_view_of(view)),
            changed,  # type: ignore[arg-type]
            self._label(facts.label, epoch),
            sources if type(sources) is dict else dict(sources),
            *(_refused(decision) if choice is None else _chosen(choice)),
            decision.saturated,
        )
        made.append((records.DECIDE, facts.request_id, data))
        return made

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
            made.append((records.LOADS, "", records.LoadsData(start, len(loads), part)))  # type: ignore[arg-type]
        self._loads = loads
        return _NOTHING


_chosen_of = attrgetter("id", "incarnation", "zone", "kind")


def _chosen(choice: Choice) -> tuple[Any, ...]:
    """From `target` to `status`, where a target was chosen."""
    return *_chosen_of(choice.target), choice.model, choice.reason, choice.predicted_ttft_s, choice.cost_usd, "", 0


def _refused(decision: Decision) -> tuple[Any, ...]:
    """From `target` to `status`, where none was."""
    assert decision.refusal is not None
    return "", "", "", "", "", "", 0.0, 0.0, decision.refusal.code, decision.refusal.status


_ELSEWHERE = {"sources": "label_sources", "tier": "complexity_tier", "score": "complexity_score"}
_end_of = attrgetter(*(_ELSEWHERE.get(name, name) for name in records.EndData.__struct_fields__))


def end_data(receipt: Receipt) -> records.EndData:
    """The record of a receipt."""
    return records.EndData(*_end_of(receipt))
