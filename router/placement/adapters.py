"""Which LoRA adapters are ready on which replica, and what it costs a request when its own is not.

An engine applies a few adapters at once (`--max-loras`) and swaps them in as requests come. vLLM tells which ones its running and
waiting requests use; what was used last and is idle stays until its slot is needed, which nobody tells, so this router remembers
what it sent where.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from router.placement.targets import Load, Report, Target

LOAD_S = 0.3
"""Seconds to swap an adapter in, assumed: some ten MiB from host memory take less, from a disk more. What matters is that it is
neither nothing, which would scatter an adapter over all replicas, nor more than a queue, which would pile it onto one."""
_ANY_SLOTS = 1
"""vLLM's `--max-loras` where it is not set."""
_DEFAULT_SERVICE_S = 2.0


class AdapterBook:
    """What each replica's slots are believed to hold, the latest used last."""

    def __init__(self) -> None:
        self._held: dict[str, OrderedDict[str, None]] = {}

    def update(self, reports: Iterable[Report]) -> None:
        """Take the cluster's word for who is there; what a replica says it is using, it has."""
        held = {}
        for report in reports:
            target, signals = report.target, report.signals
            if not target.adapters:
                continue
            book = held[target.incarnation] = self._held.get(target.incarnation) or OrderedDict()
            for name in () if signals is None else signals.adapters:
                if name in target.adapters:
                    book[name] = None
                    book.move_to_end(name)
            _trim(book, signals.adapter_slots if signals is not None else 0)
        self._held = held

    def used(self, incarnation: str, adapter: str, slots: int) -> None:
        """A request for an adapter is on its way there; `slots` is how many the replica says it has."""
        book = self._held.setdefault(incarnation, OrderedDict())
        book[adapter] = None
        book.move_to_end(adapter)
        _trim(book, slots)

    def ready(self, incarnation: str) -> tuple[str, ...]:
        """What a replica is believed to have in its slots."""
        return tuple(self._held.get(incarnation, ()))

    def delays(self, adapter: str, targets: Sequence[Target], loads: Sequence[Load]) -> Mapping[int, float]:
        """Seconds until an adapter could be applied at each target that can, by its place; absent: at once.

        Where every slot is taken by an adapter that running or waiting requests use, the engine keeps the request back until
        one of those is through.

        Args:
            adapter: what the request names.
            targets: all of them.
            loads: their books, in the same order.
        """
        found: dict[int, float] = {}
        for place, target in enumerate(targets):
            if adapter not in target.adapters or adapter in self._held.get(target.incarnation, ()):
                continue
            load = loads[place]
            signals = load.signals
            found[place] = LOAD_S
            if signals is not None and len(signals.adapters) >= (signals.adapter_slots or _ANY_SLOTS):
                found[place] += load.service_s or _DEFAULT_SERVICE_S
        return found


def _trim(book: OrderedDict[str, None], slots: int) -> None:
    while len(book) > (slots or _ANY_SLOTS):
        book.popitem(last=False)
