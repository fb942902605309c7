"""The bugs of the report's table, planted in the real code one at a time: the simulation must leak with each of them.

A bug of the *selector* (what `decide` offers) may leak only where no guard stands behind it: with the guard nothing leaks,
without guard it does. There the world stands still, for otherwise a stale view alone would leak. A bug of the *trusted base*
must leak by itself; only the guard's own copy of the policy is out of its way, because it would make up for some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from _residency import simulate
from _residency.judge import Violation
from _residency.worlds import Rules
from router import screen
from router.decision import Decision, Facts
from router.placement.targets import View
from router.policy import KeyGrant, Policy
from router.residency import admission, inflight
from router.residency.guard import GuardPolicy
from router.residency.label import UNKNOWN, Evidence, Label
from router.residency.lineage import NOTHING, LineageBook
from router.residency.resolve import resolve_label

RUNS = 6000
Patch = tuple[Any, str, Any]


class Bug(NamedTuple):
    """A bug, and what puts it in."""

    name: str
    is_selectors: bool
    patches: tuple[Patch, ...]
    wanted: Callable[[Rules], bool] = lambda rules: True
    """Among which policies it is looked for."""


def _offers(forgets: Callable[[Label, Evidence, float], tuple[Label, Evidence, float]]) -> tuple[Patch, ...]:
    """`admits`, for the selector, on what is left once something is forgotten."""
    return ((screen, "admits", lambda label, evidence, now: _real_admits(*forgets(label, evidence, now))),)


def _overlap(label: Label, evidence: Evidence, now: float) -> bool:
    store = evidence.store & ~label.store == 0 and label.duties & ~evidence.duties == 0
    return store and evidence.process & label.process != 0 and now < evidence.expires


def _with_unknown(label: Label) -> Label:
    return simulate.replace(label, process=label.process | UNKNOWN, store=label.store | UNKNOWN)


def _retry_unchecked(facts: Facts, policy: Policy, view: View, now: float) -> Decision:
    if facts.excluded:
        everywhere = policy.vocabulary.zone_mask(policy.vocabulary.zones)
        facts = simulate.replace(facts, label=Label(everywhere | UNKNOWN, everywhere | UNKNOWN))
    return _real_decide(facts, policy, view, now)


def _header_replaces(grant: KeyGrant, tags: tuple[str, ...], policy: Policy, more: Any = (), now: float = 0.0) -> Label:
    if tags and all(tag in policy.tags for tag in tags):
        return policy.tags[tags[0]]
    return resolve_label(grant, tags, policy, more, now)


def _current_only(book: inflight.InFlight, ticket: inflight.Ticket, now: float) -> None:
    _real_narrow(book, ticket, now)
    if not ticket.revoked:
        ticket.label = resolve_label(ticket.grant, ticket.tags, book._policy, now=now)


def _classification_kept(book: inflight.InFlight, policy: Policy, evidence_of: Any, now: float, unread: Any = None) -> int:
    return _real_adopt(book, policy, evidence_of, now)


def _redacted_anyhow(book: inflight.InFlight, ticket: inflight.Ticket, label: Label, policy: Policy, grant: KeyGrant) -> bool:
    ticket.declassified, ticket.label = True, label
    return True


def _expires(rules: Rules) -> bool:
    return rules.spill and rules.cloud_expires < float("inf")


def _classifies(rules: Rules) -> bool:
    return rules.reading is not None


def _redacts(rules: Rules) -> bool:
    return any(grant.redacted is not None for grant in rules.grants.values())


_real_admits, _real_decide, _real_narrow = screen.admits, simulate.decide, inflight.InFlight._narrow
_real_adopt = inflight.InFlight.adopt
_own_policy_off: Patch = (GuardPolicy, "refuses", lambda self, permission, place, now: None)
_guard_off: tuple[Patch, ...] = (
    (simulate.Process, "admits", lambda self, token, now: True),
    (simulate.World, "moves", False),
)
_rough: tuple[Patch, ...] = (
    (simulate.World, "fails", 0.9),
    (simulate.World, "egress_is_there", 0.5),
    (simulate.World, "restless", 1.0),
)
BUGS = (
    Bug("retry unchecked", True, ((simulate, "decide", _retry_unchecked),)),
    Bug(
        "unknown is fine",
        True,
        _offers(lambda label, e, now: (_with_unknown(label), e, now)),
    ),
    Bug("storage ignored", True, _offers(lambda label, e, now: (label, simulate.replace(e, store=label.store), now))),
    Bug("duties ignored", True, _offers(lambda label, e, now: (simulate.replace(label, duties=0), e, now))),
    Bug("expiry ignored", True, _offers(lambda label, e, now: (label, e, float("-inf"))), _expires),
    Bug("overlap instead of subset", True, ((screen, "admits", _overlap),)),
    Bug("header replaces ceiling", False, ((admission, "resolve_label", _header_replaces),)),
    Bug("conversation ignored", False, ((LineageBook, "inherited", lambda self, conversation, policy: NOTHING),)),
    Bug("classification ignored", False, ((inflight.Ticket, "tighten", lambda self, label: None),)),
    Bug("unread text retried anywhere", False, ((inflight.Ticket, "hold", lambda self: False), *_rough), _classifies),
    Bug("changed classification ignored", False, ((inflight.InFlight, "adopt", _classification_kept),), _classifies),
    Bug("redacted under an older policy", False, ((inflight.InFlight, "declassify", _redacted_anyhow),), _redacts),
    Bug("meet is the first", False, ((Label, "meet", lambda self, other: self),)),
    Bug("meet is the other", False, ((Label, "meet", lambda self, other: other),)),
    Bug("meet is the join", False, ((Label, "meet", Label.join),)),
    Bug("label pinned only", False, ((inflight.InFlight, "_narrow", lambda self, ticket, now: None),)),
    Bug("label current only", False, ((inflight.InFlight, "_narrow", _current_only),)),
    Bug("label of admission used for good", False, ((inflight.InFlight, "current", lambda self, ticket, facts: facts),)),
    Bug("running stream not cut", False, ((inflight.InFlight, "recheck", lambda self, evidence_of, now: 0),)),
    Bug("labels not translated", False, ((inflight, "translate_label", lambda label, old, new: label),)),
    Bug("cache ignores label", False, ((simulate, "cache_salt", lambda key, tenant, label: tenant),)),
    Bug("cache ignores tenant", False, ((simulate, "cache_salt", lambda key, tenant, label: label),)),
)


@contextmanager
def put_in(*patches: Patch) -> Iterator[None]:
    """The patches, for as long as it takes."""
    before = [(holder, name, holder.__dict__[name]) for holder, name, _ in patches]
    try:
        for holder, name, value in patches:
            setattr(holder, name, value)
        yield
    finally:
        for holder, name, value in reversed(before):
            setattr(holder, name, value)


def leaks(*patches: Patch, runs: int = RUNS, wanted: Callable[[Rules], bool] = lambda rules: True) -> bool:
    """Whether the simulation finds a violation with these patches."""
    with put_in(*patches):
        simulate.forget()
        pool = simulate.make_pool(3, 20, wanted)
        try:
            for seed in range(runs):
                simulate.run(seed, pool)
        except Violation:
            return True
        finally:
            simulate.forget()
        return False


def is_caught(bug: Bug) -> bool:
    """Whether the bug leaks exactly where it must."""
    if bug.is_selectors:
        return leaks(*bug.patches, *_guard_off, wanted=bug.wanted) and not leaks(*bug.patches, runs=300, wanted=bug.wanted)
    return leaks(*bug.patches, _own_policy_off, wanted=bug.wanted)


def is_still_without() -> bool:
    """Whether nothing leaks with no bug in: without the guard's own policy, or in a world that stands still without guard."""
    return not leaks(*_guard_off, runs=1000) and not leaks(_own_policy_off, runs=1000)
