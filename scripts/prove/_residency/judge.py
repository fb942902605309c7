"""The simulation's oracle: what the semantics say of each request, in plain sets, kept beside the code and never given to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _residency.worlds import NOWHERE, OUTSIDE, TENANTS, Allowed, Rules, allowed_at, both
from router.residency.inflight import POLICY_REVOKED, Ticket
from router.wire.errors import ApiError

if TYPE_CHECKING:
    from _residency.simulate import Process, World

TYPED = frozenset({"residency_denied", "residency_capacity", "overloaded", "model_not_found", "invalid_request", POLICY_REVOKED})


class Violation(AssertionError):
    """An invariant does not hold; the text names it."""


class Talk:
    """One conversation of a client. `bound` holds, per request so far, how long it was and what it is bound to."""

    def __init__(self, tenant: str, text: str) -> None:
        self.tenant = tenant
        self.words: tuple[str, ...] = (text,)
        """What was said, in turns: the client begins."""
        self.bound: list[tuple[int, Allowed]] = []
        self.lost = False
        self.sensitive = False
        """Whether a value stands in it that classification finds."""

    def go_on(self, text: str, sensitive: bool) -> None:
        """The model answered, and the client says something more."""
        self.words = (*self.words, "yes", text)
        self.sensitive = self.sensitive or sensitive

    def inherited(self, rules: Rules) -> Allowed | None:
        """What the requests before this one bind it to; after a loss, what the tags that require lineage ask for."""
        found = rules.asking if self.lost and len(self.words) > 1 else None
        for length, label in self.bound:
            if length < len(self.words):
                found = label if found is None else both(found, label)
        return found

    def bind(self, rules: Rules, label: Allowed, length: int) -> None:
        """Follow-ups are bound to what a request of this length is bound to, where that narrows anything for the tenant."""
        widest = rules.widest.get(self.tenant)
        if widest is None or both(widest, label) != widest:
            self.bound.append((length, label))
            self.lost = False
        elif rules.asking is not None:
            self.lost = False


class Judge:
    """What the semantics say of one request, kept beside the code and never given to it."""

    def __init__(self, world: World, key: str, tags: tuple[str, ...], model: str, talk: Talk) -> None:
        self.world, self.key, self.tags, self.model, self.talk = world, key, tags, model, talk
        self.label: Allowed | None = None
        self.sent = 0
        self.generation = world.generation
        self.sensitive = talk.sensitive
        self.redacted = False
        self.found: Allowed | None = None
        """What classification has made of it under the policies so far, whether or not it was asked."""
        self.last: Allowed | None = None

    def see_policy(self) -> Allowed:
        """The label under the policy that the router runs now takes the meet with everything before."""
        rules = self.world.running
        own = rules.label(self.key, self.tags, self.world.now, self.redacted) or NOWHERE
        self.label = own if self.label is None else both(self.label, own)
        if self.sensitive and not self.redacted and rules.found is not None:
            self.found = rules.found if self.found is None else both(self.found, rules.found)
        return self.label if self.found is None else both(self.label, self.found)

    def redact(self, inherited: Allowed | None) -> None:
        """What is sent from here on is another payload, with a label of its own."""
        self.redacted, self.label, self.found, self.last = True, inherited, None, None
        self.see_policy()

    def sending(self, ticket: Ticket, process: Process) -> None:
        """A body is about to reach `process`: I1 and I2."""
        self.world.bytes_sent += 1
        self.sent += 1
        used = self.world.running.in_sets(ticket.label)
        if self.last is not None and both(self.last, used) != used:
            raise Violation("I2: a label widened in flight")
        self.last = used
        self.flowing(process, "send")

    def flowing(self, process: Process, what: str) -> None:
        """Bytes flow between the client and `process`: I1."""
        label = self.see_policy()
        if self.model in self.world.running.models:
            label = both(label, self.world.running.models[self.model])
        if not allowed_at(label, process.truth):
            raise Violation(f"I1: {what} to {sorted(process.truth[0])} under {[sorted(part) for part in label]}")
        rules = self.world.running
        if process.truth[0] == {OUTSIDE}:
            if not (rules.spill and rules.grants[self.key].spill):
                raise Violation(f"I1: {what} outside without permission to spill")
            if self.world.now >= rules.cloud_expires:
                raise Violation(f"I1: {what} outside on expired evidence")

    def salted(self, process: Process, salt: str, label: str) -> None:
        """The engine's cache answers under this salt: I5, only to the same tenant under the same label."""
        whose = (TENANTS[self.key], label)
        if process.cache.setdefault(salt, whose) != whose:
            raise Violation("I5: two tenants or labels share cached prefixes")


def refused(judge: Judge, error: ApiError) -> None:
    """I7: a refusal has a code and status of the contract; one for residency comes before any byte was sent."""
    if error.code not in TYPED or error.status not in (400, 403, 404, 503):
        raise Violation(f"I7: {error.status} {error.code}")
    if error.code in ("residency_denied", "invalid_request") and judge.sent and judge.last is None:
        raise Violation("I7: bytes were sent before a refusal")
