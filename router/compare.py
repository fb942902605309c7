"""Which targets a request is compared over, and in which order: a bounded few of very many.

While there are few targets everything here is the identity: all of them, in the order of the membership.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping

from router.decision import Facts
from router.placement.predict import Ask, rank_costs
from router.placement.targets import View
from router.screen import Admitted, Group, Shortlist

FEW = 5
"""Targets that are all worth a forecast; of more, the most promising ones."""
LONG = 8192
"""Prompt tokens to compute from which all targets are compared. So much goes where as much is computed already, and delays as
few answers as can be: the best of a part is not that place, and among 64 targets with documents among chats, in overload, one
answer in twenty missed its pace for it. The comparison takes a thousandth of the prefill's time."""


def worth_a_look(group: Group, view: View, ask: Ask, now: float, same_rank: bool) -> Iterable[Admitted]:
    """The entries, the more promising ones first when there are many; a better fitting model goes before everything.

    Args:
        group: what to compare.
        view: the books, what of the prompt is cached where, and where its adapter is ready.
        ask: what the request asks.
        now: UNIX time in seconds.
        same_rank: whether all entries serve an equally fitting model.
    """
    entries = group.entries
    if len(entries) <= FEW:
        return entries
    costs = rank_costs(view.loads, group.places, ask, view.cached, now)
    for index, seconds in view.adapter_s.items():
        if index in group.places:
            costs[group.places[index]] += seconds
    if same_rank:
        return map(entries.__getitem__, sorted(range(len(entries)), key=costs.__getitem__))
    return map(entries.__getitem__, sorted(range(len(entries)), key=lambda i: (entries[i].rank, costs[i])))


def groups_for(facts: Facts, found: Shortlist, cached: Mapping[int, int]) -> Iterator[Group]:
    """What to compare; the next one only while nothing of the one before serves the request in time.

    Of very many targets first one part, drawn by the request's id, with those that hold most of its prompt; then all of them,
    and at once for a long prompt.

    Args:
        facts: of the request.
        found: what screening left.
        cached: leading prompt tokens held, by membership index.
    """
    if found.groups and facts.prompt_tokens - max(cached.values(), default=0) < LONG:
        part = found.groups[zlib.crc32(facts.request_id.encode("utf-8", "surrogatepass")) % len(found.groups)]
        holders = sorted(cached, key=cached.__getitem__, reverse=True)[:FEW]
        others = [index for index in holders if index not in part.places and index in found.whole.places]
        if others:
            entries = (*part.entries, *(found.local[found.whole.places[index]] for index in others))
            places = part.places | {index: place for place, index in enumerate(others, len(part.entries))}
            part = Group(entries, places, found.whole.context_tokens)
        yield part
    yield found.whole
