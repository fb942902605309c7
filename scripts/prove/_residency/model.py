"""The protocol, explored in every order: one router, two targets, a reload, a relabelled target, stale views, and one request.

The request may be retried, fall back, be hedged, cascade to another model, be continued after a failure, end in a cache, and
have a follow-up in the same conversation. Labels and evidence are real ones, and `Label.meet` and `admits` are the
real functions; what is modelled is who decides what with which knowledge, and in which order. `explore` visits every
reachable state and returns the first that breaks an invariant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from router.residency.label import UNKNOWN, Evidence, Label, admits

A, B, BOTH = 2, 4, 6
WIDE, TIGHT, ONLY_A, ONLY_B, STORE_A = Label(BOTH, BOTH), Label(A, A, 1), Label(A, A), Label(B, B), Label(BOTH, A)
IN_A, IN_B = Evidence(A, A, 1), Evidence(B, B, 1)
STORES_B, PLAIN, NOWHERE = Evidence(A, B, 1), Evidence(A, A), Evidence(UNKNOWN, UNKNOWN, 1)
POOL, EXPIRED = Evidence(BOTH, A, 1), Evidence(A, A, 1, -1.0)
RELABELS = (IN_B, STORES_B, PLAIN, NOWHERE, POOL, EXPIRED)
CACHE_STORE = Evidence(A, A, 1)
SCENARIOS = {"tighten": (WIDE, TIGHT), "relax": (TIGHT, WIDE)}
TAGS: dict[str, Label | None] = {"none": None, "only-a": ONLY_A, "only-b": ONLY_B, "store-a": STORE_A, "any": WIDE}
MOST_SENDS = 3
MUTANTS_THE_GUARD_STOPS = (
    "retry unchecked",
    "fallback unchecked",
    "hedge unchecked",
    "continuation unchecked",
    "cascade unchecked",
    "unknown is fine",
    "storage ignored",
    "overlap instead of subset",
    "duties ignored",
    "expiry ignored",
)
"""Bugs of the selector: with the guard at work none of them can leak."""
ANY_SELECTOR = "selector offers anything"
"""Every bug a selector can have at once: it may offer any target for anything."""
WITHOUT_GUARD = ("guard off", "views always fresh")
"""What lays a selector's bug bare: without a guard, but also without the leak that stale views alone are."""
_WEAKENINGS = frozenset({"overlap instead of subset", "storage ignored", "duties ignored", "expiry ignored"})
MUTANTS_OF_THE_TRUSTED_BASE = (
    "header replaces ceiling",
    "classification ignored",
    "conversation ignored",
    "label pinned only",
    "label current only",
    "cache ignores label",
    "cache stores anything",
    "running stream not cut",
    "guard off",
)
"""Bugs of `resolve_label`, the guard, the cache gate and the reload: these must be right."""


class State(NamedTuple):
    """Everything there is. Targets are 0 and 1; `at` and `hedged` are the evidence of what the request is connected to.

    `pinned` and `used` are the router's: its label at admission, and that of its last send. `spec` is the checker's own: the
    label the semantics give the request now. `past` is the label of the conversation before, `cached` an answer in the cache.
    """

    router_epoch: int
    guard_epoch: int
    truth: tuple[Evidence, Evidence]
    view: tuple[Evidence, Evidence]
    phase: str
    tag: str
    classified: bool
    pinned: Label | None
    used: Label | None
    spec: Label | None
    at: Evidence | None
    hedged: Evidence | None
    sends: int
    cached: Evidence | None
    past: Label | None


class Broken(NamedTuple):
    """An invariant that does not hold, and the step that broke it."""

    invariant: str
    step: str


meet = lru_cache(maxsize=None)(Label.meet)
within = lru_cache(maxsize=None)(Label.is_within)


@cache
def allows(label: Label, evidence: Evidence) -> bool:
    """The real `admits`, remembered."""
    return admits(label, evidence, 0.0)


@dataclass(frozen=True)
class Protocol:
    """The steps that may follow a state, with the given bugs; the router's rules as the code has them."""

    ceilings: tuple[Label, Label]
    mutants: frozenset[str]

    def initial(self) -> State:
        """Nothing has happened; the targets stand where the router thinks."""
        truth = (IN_A, IN_B)
        return State(0, 0, truth, truth, "idle", "none", False, None, None, None, None, None, 0, None, None)

    def specified(self, state: State, epoch: int) -> Label:
        """label(r, epoch) of the semantics."""
        label = self.ceilings[epoch]
        for more in (TAGS[state.tag], ONLY_A if state.classified else None, state.past):
            if more is not None:
                label = meet(label, more)
        return label

    def resolved(self, state: State, epoch: int) -> Label:
        """What the router makes of it, bugs included."""
        label = self.ceilings[epoch]
        tag = TAGS[state.tag]
        if tag is not None:
            label = tag if "header replaces ceiling" in self.mutants else meet(label, tag)
        if state.classified and "classification ignored" not in self.mutants:
            label = meet(label, ONLY_A)
        if state.past is not None and "conversation ignored" not in self.mutants:
            label = meet(label, state.past)
        return label

    def effective(self, state: State) -> Label:
        """The router's label for the next send: the meet of everything since admission, never wider."""
        assert state.pinned is not None
        if "label pinned only" in self.mutants:
            return state.pinned
        now = self.resolved(state, state.router_epoch)
        if "label current only" in self.mutants:
            return now
        return meet(meet(state.pinned, now), state.used or state.pinned)

    def selects(self, kind: str, label: Label, evidence: Evidence) -> bool:
        """Whether the router offers a target for a send of this kind, as far as it knows."""
        mutants = self.mutants
        if (
            ANY_SELECTOR in mutants
            or f"{kind} unchecked" in mutants
            or ("unknown is fine" in mutants and evidence.process & UNKNOWN)
        ):
            return True
        if mutants.isdisjoint(_WEAKENINGS):
            return allows(label, evidence)
        if "overlap instead of subset" in mutants:
            process = evidence.process & label.process != 0
        else:
            process = evidence.process != 0 and evidence.process & ~label.process == 0
        store = evidence.store & ~label.store == 0 or "storage ignored" in mutants
        if evidence.expires <= 0.0 and "expiry ignored" not in mutants:
            return False
        return process and store and (label.duties & ~evidence.duties == 0 or "duties ignored" in mutants)

    def guarded(self, state: State, label: Label, evidence: Evidence) -> bool:
        """Whether the guard lets it in: the pass's label, and the guard's own policy, on where it really stands."""
        if "guard off" in self.mutants:
            return True
        own, tag = self.ceilings[state.guard_epoch], TAGS[state.tag]
        return allows(label, evidence) and allows(own, evidence) and (tag is None or allows(tag, evidence))

    def steps(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        """Every step that may come next."""
        yield from self._world(state)
        if state.phase in ("idle", "again"):
            yield from self._admissions(state)
        elif state.phase == "running":
            yield from self._running(state)
        elif state.phase == "waiting" and state.sends < MOST_SENDS:
            for kind in ("first",) if state.sends == 0 else ("retry", "fallback", "continuation", "cascade"):
                for target in (0, 1):
                    yield from self._send(state, kind, target)

    def _world(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        if state.router_epoch == 0:
            spec = state.spec and meet(state.spec, self.specified(state, 1))
            yield "router reloads", self._cut(state._replace(router_epoch=1, spec=spec), by_router=True)
        if state.guard_epoch == 0:
            yield "guard reloads", self._cut(state._replace(guard_epoch=1), by_router=False)
        for target, choices in ((0, RELABELS), (1, (IN_A,))):
            if state.truth[target] == (IN_A, IN_B)[target]:
                for evidence in choices:
                    truth = (evidence, state.truth[1]) if target == 0 else (state.truth[0], evidence)
                    view = truth if "views always fresh" in self.mutants else state.view
                    yield f"target {target} becomes {evidence}", state._replace(truth=truth, view=view)
            if state.view[target] != state.truth[target]:
                seen = state.truth[target]
                view = (seen, state.view[1]) if target == 0 else (state.view[0], seen)
                yield f"view of {target} refreshed", state._replace(view=view)

    def _cut(self, state: State, *, by_router: bool) -> State:
        """A new policy arrives and cuts what it forbids: the router by the label, the guard by its own policy."""
        if state.phase != "running" or "running stream not cut" in self.mutants:
            return state

        def stays(evidence: Evidence | None) -> Evidence | None:
            if evidence is None:
                return None
            label = self.effective(state)
            allowed = allows(label, evidence) if by_router else self.guarded(state, label, evidence)
            return evidence if allowed else None

        at, hedged = stays(state.at), stays(state.hedged)
        if at is None:
            at, hedged = hedged, None
        return state._replace(at=at, hedged=hedged, phase="waiting" if at is None else "running")

    def _admissions(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        again = state.phase == "again"
        for tag in ("none", "any") if again else TAGS:
            for classified in (False,) if again else (False, True):
                fresh = state._replace(tag=tag, classified=classified, used=None, sends=0, phase="waiting")
                label, spec = self.resolved(fresh, state.router_epoch), self.specified(fresh, state.router_epoch)
                admitted = fresh._replace(pinned=label, spec=spec)
                yield f"admit {tag}", admitted
                # The cache answers a follow-up where its own label allows the place the answer was produced in.
                producer = state.cached
                if producer is not None and ("cache ignores label" in self.mutants or allows(label, producer)):
                    right = allows(spec, producer)
                    yield "cache hit", admitted._replace(phase="done") if right else Broken("I5", "cache hit")

    def _running(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        assert state.spec is not None
        if state.hedged is None and state.sends == 1:
            for target in (0, 1):
                yield from self._send(state, "hedge", target)
        yield "target fails", state._replace(phase="waiting", at=None, hedged=None)
        if state.past is None:
            done = state._replace(phase="again", past=state.spec, at=None, hedged=None)
            yield "answered", done
            if "cache stores anything" in self.mutants or allows(self.effective(state), CACHE_STORE):
                right = allows(state.spec, CACHE_STORE)
                yield "answered and stored", done._replace(cached=state.at) if right else Broken("I5", "cache store")

    def _send(self, state: State, kind: str, target: int) -> Iterator[tuple[str, State | Broken]]:
        assert state.spec is not None
        label, there, step = self.effective(state), state.truth[target], f"{kind} to {target}"
        if not self.selects(kind, label, state.view[target]) or not self.guarded(state, label, there):
            return
        if state.used is not None and not within(label, state.used):
            yield step, Broken("I2", step)
        elif not allows(state.spec, there):
            yield step, Broken("I1", step)
        else:
            sent = state._replace(phase="running", used=label, sends=state.sends + 1)
            yield step, sent._replace(hedged=there) if kind == "hedge" else sent._replace(at=there)


def running_where_it_may(state: State) -> bool:
    """Once router and guard have the new policy, no byte flows where the request's label forbids it."""
    if state.phase != "running" or state.router_epoch != state.guard_epoch:
        return True
    assert state.spec is not None
    return all(evidence is None or allows(state.spec, evidence) for evidence in (state.at, state.hedged))


class Result(NamedTuple):
    """How many states there are, and the first that breaks an invariant."""

    states: int
    broken: Broken | None


def explore(*mutants: str) -> Result:
    """Every reachable state of both scenarios, breadth first; ends at the first broken invariant."""
    visited = 0
    for name, ceilings in SCENARIOS.items():
        protocol = Protocol(ceilings, frozenset(mutants))
        start = protocol.initial()
        seen = {start}
        queue = deque([start])
        while queue:
            for step, after in protocol.steps(queue.popleft()):
                if isinstance(after, Broken):
                    return Result(visited + len(seen), Broken(after.invariant, f"{name}: {after.step}"))
                if after in seen:
                    continue
                if not running_where_it_may(after):
                    return Result(visited + len(seen), Broken("I1", f"{name}: {step}, and bytes still flow"))
                seen.add(after)
                queue.append(after)
        visited += len(seen)
    return Result(visited, None)


def check(name: str) -> bool:
    """Whether a mutant is caught: one of the trusted base by itself, one of the selector once no guard stands behind it."""
    behind = () if name in MUTANTS_OF_THE_TRUSTED_BASE else WITHOUT_GUARD
    return explore(name, *behind).broken is not None
