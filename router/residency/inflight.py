"""Requests in flight, and what a new policy means for each of them: a label may narrow while a request runs, never widen.

A `Ticket` is entered when a request is admitted and left when it is answered. It holds the request's label in the vocabulary
of the *current* policy. Whenever the policy, the clock or a target's evidence changes, `recheck` takes the meet of every
ticket's label with the label it would get now, and cuts every exchange whose target may no longer have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import ref

from msgspec.structs import replace

from router.decision import Facts
from router.identity.scopes import bearer_grant
from router.placement.targets import Kind, Target
from router.policy import KeyGrant, Policy
from router.residency.label import Evidence, Label, admits, translate_evidence, translate_label
from router.residency.resolve import resolve_label
from router.wire.errors import ApiError

POLICY_REVOKED = "policy_revoked"
"""The code of a request that a tightened policy ended, and the failure of its exchange."""


class Cuttable(Protocol):
    """An exchange with a target, as far as ending it goes."""

    deadline: float

    def broken(self, why: str) -> None:
        """End it without success; nothing more reaches the client from the target."""

    @property
    def connection(self) -> Discardable | None:
        """The connection it has by now."""


class Discardable(Protocol):
    """A connection that can be dropped."""

    def discard(self) -> None:
        """Drop it with whatever is in flight."""


class Ticket:
    """One request in flight. `label` only ever narrows; `revoked` says why it must not go on."""

    __slots__ = (
        "__weakref__",
        "declassified",
        "exchange",
        "grant",
        "label",
        "model",
        "redacting",
        "revoked",
        "tags",
        "target",
        "unread",
    )

    def __init__(self, grant: KeyGrant, tags: tuple[str, ...], label: Label) -> None:
        self.grant = grant
        self.tags = tags
        self.label = label
        self.revoked = ""
        self.declassified = False
        self.redacting = False
        """A redacted form is being made: that its own label leaves no zone is no reason to give it up yet."""
        self.unread: Label | None = None
        """What classification could say at worst, where it was not asked; see `hold`."""
        self.target: Target | None = None
        self.model = ""
        self.exchange: Cuttable | None = None

    def begin(self, target: Target, model: str, exchange: Cuttable) -> None:
        """An attempt at `target` is about to send its first byte."""
        self.target, self.model, self.exchange = target, model, exchange

    def tighten(self, label: Label) -> None:
        """Something more has a say."""
        self.label = self.label.meet(label)

    def hold(self) -> bool:
        """Another decision is due, and other targets than those for which nobody had to read the request may be there by now:
        where it was not read, it is held to the worst that could stand in it. True when that narrows anything."""
        if self.unread is None:
            return False
        before, self.label, self.unread = self.label, self.label.meet(self.unread), None
        return self.label != before

    def is_as_in(self, facts: Facts) -> bool:
        """Whether what was decided from these facts would be decided from the same ones now."""
        return not self.revoked and facts.label == self.label and facts.key is self.grant

    def end(self) -> None:
        """The attempt is over, however it ended."""
        self.target, self.exchange = None, None


class InFlight:
    """All tickets of one router, under the policy it runs."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.find_outside: Callable[[KeyGrant], KeyGrant | None] = lambda _: None
        """The grant of now for a key that does not stand in the configuration; None once it is not valid."""
        # Weak, so that no way out of a request that forgets to leave can keep its ticket. A `WeakSet` does the same in Python.
        self._refs: set[ref[Ticket]] = set()

    def __len__(self) -> int:
        return len(self._refs)

    def enter(self, grant: KeyGrant, tags: tuple[str, ...], label: Label) -> Ticket:
        """A request was admitted under the current policy with this effective label."""
        ticket = Ticket(grant, tags, label)
        self._refs.add(ref(ticket, self._refs.discard))
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The request was answered. Calling it again changes nothing."""
        ticket.end()
        self._refs.discard(ref(ticket))

    def declassify(self, ticket: Ticket, label: Label, policy: Policy, grant: KeyGrant) -> bool:
        """The payload was redacted: what goes on is another one, under a label of its own.

        Args:
            ticket: the request.
            label: the redacted request's.
            policy: what that label was found under.
            grant: the same.

        Returns:
            False, and nothing is changed, where either is not that of now: the label would mean something else.
        """
        if ticket.revoked or policy is not self._policy or grant is not ticket.grant:
            return False
        ticket.declassified, ticket.label, ticket.unread = True, label, None
        return True

    def current(self, ticket: Ticket, facts: Facts) -> Facts:
        """The facts for the next decision: with the ticket's label and grant of now.

        Raises:
            ApiError: 403 `policy_revoked` when the policy no longer lets this request go anywhere.
        """
        if ticket.revoked:
            raise ApiError(403, POLICY_REVOKED, f"The policy changed while this request was in flight: {ticket.revoked}.")
        if ticket.is_as_in(facts):
            return facts
        return replace(facts, label=ticket.label, key=ticket.grant)

    def adopt(
        self, policy: Policy, evidence_of: Callable[[Target], Evidence | None], now: float, unread: Label | None = None
    ) -> int:
        """Take a new policy: translate and narrow every label, cut what it forbids.

        Args:
            policy: the new policy.
            evidence_of: a target's evidence in the new vocabulary, None when nobody vouches for it any more.
            now: UNIX time in seconds.
            unread: the worst that the new policy's classification could say, where it says other things than the old one's:
                nobody has read the requests in flight for it, so they are held to that. None: it says the same.

        Returns:
            How many exchanges were cut.
        """
        before, self._policy = self._policy.vocabulary, policy
        for ticket in self._tickets:
            ticket.label = translate_label(ticket.label, before, policy.vocabulary)
            if unread is not None:
                ticket.tighten(unread)
            if ticket.unread is not None:
                ticket.unread = translate_label(ticket.unread, before, policy.vocabulary)
            if ticket.target is not None:
                evidence = translate_evidence(ticket.target.evidence, before, policy.vocabulary)
                ticket.target = replace(ticket.target, evidence=evidence)
        return self.recheck(evidence_of, now)

    def recheck(self, evidence_of: Callable[[Target], Evidence | None], now: float) -> int:
        """Ask of every request again whether it may be where it is; time, evidence and relaxations pass.

        Returns:
            How many exchanges were cut.
        """
        tickets = self._tickets
        for ticket in tickets:
            self._narrow(ticket, now)
        cut = 0
        # Only now: an exchange that is cut may at once be tried elsewhere, under labels that must all be the new ones.
        for ticket in tickets:
            target, exchange = ticket.target, ticket.exchange
            if target is None or exchange is None:
                continue
            if ticket.revoked or not may_stay(self._policy, ticket, target, evidence_of(target), now):
                ticket.end()
                _cut(exchange)
                cut += 1
        return cut

    @property
    def _tickets(self) -> list[Ticket]:
        return [ticket for known in list(self._refs) if (ticket := known()) is not None]

    def _narrow(self, ticket: Ticket, now: float) -> None:
        held = ticket.grant
        grant = self._policy.keys.get(held.digest) if held.digest else self.find_outside(held)
        if grant is None or grant.expires <= now or (ticket.declassified and grant.redacted is None):
            ticket.revoked = "the key is no longer valid"
            return
        if grant.id != held.id:  # a token that bears the scopes of a configured key
            try:
                grant = bearer_grant(grant, held.id, held.tenant, held.narrowing, self._policy)
            except ValueError:  # it names a tag that is gone
                ticket.revoked = "the token is no longer valid"
                return
        if grant != held:
            ticket.grant = grant
        redacted = grant.redacted if ticket.declassified else None
        ceiling = grant if redacted is None else replace(grant, ceiling=redacted)
        try:
            ticket.label = ticket.label.meet(resolve_label(ceiling, ticket.tags, self._policy, now=now))
        except ApiError:  # a tag that is gone, or nothing left of the ceiling
            ticket.label = ticket.label.meet(Label(0, 0))
        if ticket.label.process == 0 and not ticket.redacting:
            ticket.revoked = "no zone is left that its label allows"


def may_stay(policy: Policy, ticket: Ticket, target: Target, evidence: Evidence | None, now: float) -> bool:
    """Whether a request may go on at the target it is at."""
    return evidence is not None and may_use(policy, ticket.grant, ticket.label, ticket.model, target, evidence, now)


def may_use(policy: Policy, grant: KeyGrant, label: Label, model: str, target: Target, evidence: Evidence, now: float) -> bool:
    """Whether a key's request may have what a target makes of it, whatever is up and however loaded.

    Args:
        policy: the policy of now.
        grant: what the key may do under it.
        label: the request's label, before what the model demands.
        model: the model that answers.
        target: where.
        evidence: what is known of the target.
        now: UNIX time in seconds.
    """
    if target.kind is Kind.CLOUD and not (policy.spill_enabled and grant.spill):
        return False
    if grant.models is not None and model not in grant.models:
        return False
    return admits(policy.label_for(label, model), evidence, now)


def _cut(exchange: Cuttable) -> None:
    # A deadline in the past tells the pool not to send it again on a fresh connection.
    exchange.deadline = float("-inf")
    exchange.broken(POLICY_REVOKED)
    if exchange.connection is not None:
        exchange.connection.discard()
