"""A router of the simulation: it decides with the live `decide` and keeps the live `Fleet`. The planner and the bench run it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from cluster.simulation.cluster import CLOUD, HOLD, REFUSE
from cluster.simulation.engine import Gauges, SimulatedRequest
from cluster.simulation.kv_cache import BLOCK_TOKENS
from cluster.simulation.outcome import Slo
from router.compiled import compile_policy
from router.config import parse_config
from router.decide import decide
from router.decision import Choice, Complexity, Decision, Facts
from router.placement.admission import AdmissionQueue, Ticket
from router.placement.booking import Booking
from router.placement.fleet import Fleet
from router.placement.peers import END, FIRST, SENT, Notice
from router.placement.prefix import PrefixIndex
from router.placement.profile import EngineProfile
from router.placement.targets import Address, Endpoint, Kind, Price, Report, Signals, Target, View, Work
from router.placement.trust import FRESH_PROOF_S
from router.placement.waiting import Bounds, counted_wait_s, is_in_time, make_ticket, seen_by, worth_waiting
from router.policy import Policy
from router.residency.label import Evidence

MODEL = "model"
_KEY_DIGEST = "00" * 32
_TEND_S = 1.0
"""How often the live router confirms what it has routed, and lets fade what nothing tests."""


@dataclass(frozen=True)
class RouterSetup:
    """How the simulated routers are configured.

    `believed` is the profile that predictions start from; None leaves them the generic one. `max_wait_s` bounds the wait
    before a refusal.
    """

    profile: EngineProfile
    slo: Slo = field(default_factory=Slo)
    engines: int = 8
    believed: EngineProfile | None = None
    cloud: bool = False
    goal: float = 0.95
    max_wait_s: float = 1e6
    prefixes: bool = True
    queue: int = 1000
    """Requests the router may hold back (the live default); 0: what is late goes to its target all the same."""
    events_age_s: float = 0.25
    """How late KV events come; beyond what counts as proof, the router goes by what it sent where."""
    whole_share: float = 0.0
    """Share of the answers that come in one piece, not as a stream: the router sees no first token of theirs."""


def make_policy(setup: RouterSetup) -> Policy:
    """The compiled policy: one model, one zone, and a cloud with a key that may use it where the setup has one."""
    slo = setup.slo
    config = {
        "zones": {"here": {}, "cloud": {"external": True}},
        "models": [{"id": MODEL, "source": "x/model", "replicas": [{"zone": "here", "count": setup.engines}]}],
        "targets": [{"id": "cloud", "kind": "cloud", "url": "https://cloud.invalid", "zone": "cloud", "models": {MODEL: "m"}}],
        "keys": [{"id": "client", "sha256": _KEY_DIGEST, "residency": "any", "spill": setup.cloud}],
        "slo": {
            "ttft_ms": slo.ttft_s * 1e3,
            "tpot_ms": slo.tpot_s * 1e3,
            "stretch": slo.stretch,
            "goal": setup.goal,
            "max_wait_ms": setup.max_wait_s * 1e3,
        },
    }
    return compile_policy(parse_config(config), Path())


class SimulatedRouter:
    """One router: `place` is what the live handler does between a request and its dispatch."""

    def __init__(self, number: int, setup: RouterSetup, policy: Policy) -> None:
        self.policy = policy
        self.number = number
        profiles = {} if setup.believed is None else {MODEL: setup.believed}
        self.fleet = Fleet(math.inf, profiles, setup.goal, setup.slo.tpot_s)
        self.prefixes = PrefixIndex(history_chunks=setup.profile.kv_tokens // BLOCK_TOKENS)
        """Without events it goes by what was routed where, as much as fits an engine's cache."""
        self._grant = policy.keys.get(bytes.fromhex(_KEY_DIGEST))
        self._bookings: dict[int, Booking] = {}
        self._setup = setup
        self.queue = AdmissionQueue(setup.queue) if setup.queue else None
        self._held: dict[str, SimulatedRequest] = {}
        self._turned_away: list[SimulatedRequest] = []
        self._targets = self._engines()
        self._cloud = self._providers()
        self.fleet.update([Report(target) for target in (*self._targets, *self._cloud)])
        if setup.prefixes:
            for target in self._targets:
                self.prefixes.join(target.incarnation)
                # Events this late are no proof any more: the live trust falls to DEGRADED, and history stands in for them.
                self.prefixes.trust_events(target.incarnation, setup.events_age_s <= FRESH_PROOF_S)
        self._tend_at = 0.0

    def _engines(self) -> list[Target]:
        return [make_engine(self.policy, i, "here", MODEL, self._setup.profile.slots) for i in range(self._setup.engines)]

    def _providers(self) -> list[Target]:
        return [make_provider(self.policy, "cloud", "cloud", [MODEL])] if self._setup.cloud else []

    def facts(self, request: SimulatedRequest, waited_s: float = 0.0) -> Facts:
        """The facts the live router would have gathered."""
        return Facts(
            request_id=str(request.index),
            key=self._grant,
            endpoint=Endpoint.CHAT,
            model=MODEL,
            label=self._grant.ceiling,
            complexity=_PLAIN,
            prompt_bytes=request.prompt * 4,
            prompt_tokens=request.prompt,
            waited_s=waited_s,
        )

    def place(self, request: SimulatedRequest, now: float) -> int:
        """Decide and book, or hold."""
        decision = self._decide(request, now, 0.0)
        choice, queue = decision.chosen, self.queue
        if choice is None:
            return REFUSE
        if queue is None or choice.work is None or not (decision.late or len(queue)):
            return self._book(request, choice, now)
        facts = self.facts(request)
        if not queue.barred(facts.priority, facts.key.tenant) >> choice.index & 1 and not self._worth_waiting(decision, now):
            return self._book(request, choice, now)
        margin_s = self.fleet.calibration.margin_s
        ticket = make_ticket(
            str(request.index),
            facts.key.tenant,
            choice.work,
            margin_s,
            now,
            self._setup.max_wait_s,
            facts.priority,
            (facts.label, facts.model, facts.key.spill),
            decision.models,
        )
        self._held[ticket.id] = request
        queue.offer(ticket, now)
        for displaced in queue.overflow(now):
            held = self._held.pop(displaced.id)
            if displaced is ticket:
                return REFUSE
            self._turned_away.append(held)
        return HOLD

    def _worth_waiting(self, decision: Decision, now: float, waited_s: float = 0.0) -> bool:
        choice = decision.chosen
        if choice is None or choice.work is None or not decision.late:
            return False
        tpot_s, calibration = self._setup.slo.tpot_s, self.fleet.calibration
        bounds = Bounds(calibration.margin_s, tpot_s * calibration.pace_share, tpot_s)
        return worth_waiting(choice.target, self.fleet.load_of(choice.target.incarnation), choice.work, bounds, now, waited_s)

    def _decide(
        self, request: SimulatedRequest, now: float, waited_s: float, ticket: Ticket | None = None, barred: int = 0
    ) -> Decision:
        facts = self.facts(request, waited_s)
        if barred:
            facts = replace(facts, excluded=frozenset(t.incarnation for i, t in enumerate(self._targets) if barred >> i & 1))
        view = self.view(request.blocks, now)
        decision = decide(facts, self.policy, view if ticket is None else seen_by(ticket, view), now)
        self.fleet.set_saturated(facts.label, decision.models, decision.saturated)
        return decision

    def view(self, blocks: Sequence[int], now: float, block_tokens: float = BLOCK_TOKENS) -> View:
        """What the live router's `view_for` would make of a prompt in these blocks."""
        places = self.fleet.places
        held = {places[name]: int(count * block_tokens) for name, count in self.prefixes.depths(blocks).items()}
        return replace(self.fleet.view(now), cached=held)

    def _book(self, request: SimulatedRequest, choice: Choice, now: float) -> int:
        whole = request.index % 100 < 100 * self._setup.whole_share
        booking = self.fleet.book(choice.target, request.prompt, now, choice.cost_usd, choice.work, choice.model, whole=whole)
        if choice.target.kind is Kind.CLOUD:
            self.fleet.end(booking, now, completed=True)
            return CLOUD
        self.prefixes.route(choice.target.incarnation, request.blocks)
        self._bookings[request.index] = booking
        request.work = choice.work
        return choice.index

    def on_first(self, request: SimulatedRequest, now: float) -> None:
        """The first byte of an answer."""
        booking = self._bookings[request.index]
        if not booking.whole:
            self._begin(booking, request, now)

    def _begin(self, booking: Booking, request: SimulatedRequest, now: float) -> None:
        self.fleet.first_byte(booking, now)
        self.prefixes.computed(booking.incarnation, request.blocks, now)

    def on_done(self, request: SimulatedRequest, now: float) -> None:
        """The end of an answer, with its usage."""
        booking = self._bookings.pop(request.index)
        if booking.whole:
            self._begin(booking, request, now)
        self.fleet.end(booking, now, completed=True, output_tokens=request.output)

    def on_gauges(self, gauges: Sequence[Gauges], now: float) -> None:
        """Reports of the engines, as the live membership brings them."""
        reports = [
            Report(target, Signals(gauge.sampled_at + 1e-6, gauge.running, gauge.waiting, gauge.kv_usage))
            for target, gauge in zip(self._targets, gauges, strict=True)
        ]
        self.fleet.update([*reports, *(Report(target) for target in self._cloud)])
        if now >= self._tend_at:
            self._tend_at = now + _TEND_S
            self.prefixes.tend(now)
            self.fleet.fade(now)

    def on_blocks(self, engine: int, stored: Sequence[int], removed: Sequence[int], now: float) -> None:
        """KV events of one engine, as its agent tells them."""
        name = self._targets[engine].incarnation
        self.prefixes.remove(name, removed)
        self.prefixes.store(name, stored)

    def on_notice(self, kind: str, request: SimulatedRequest, engine: int, now: float) -> None:
        """A peer's request. What its prompt was is not told, here as live: events say what it left in the cache."""
        event = {"placed": SENT, "first": FIRST, "done": END}[kind]
        work = request.work if isinstance(request.work, Work) and kind == "placed" else None
        self.fleet.noticed(Notice(request.index, event, self._targets[engine].incarnation, work), now)

    def release(self, now: float) -> Iterable[tuple[SimulatedRequest, int]]:
        """Held requests that may go now, and those whose patience has ended."""
        queue = self.queue
        gone: list[tuple[SimulatedRequest, int]] = []
        if queue is None:
            return gone
        gone += ((request, REFUSE) for request in self._turned_away)
        self._turned_away.clear()
        for ticket in queue.expire(now):
            gone.append((self._held.pop(ticket.id), REFUSE))

        def attempt(ticket: Ticket, barred: int) -> int | None:
            request = self._held[ticket.id]
            waited_s = counted_wait_s(ticket, now, queue.late_s / self._setup.engines)
            decision = self._decide(request, now, waited_s, ticket)
            choice = decision.chosen
            if choice is None:
                return 0
            ticket.yields = False
            if barred >> choice.index & 1:
                decision = self._decide(request, now, waited_s, ticket, barred)
                if decision.chosen is None or decision.late:
                    return 1 << choice.index
            if self._worth_waiting(decision, now, waited_s):
                ticket.yields = is_in_time(decision.chosen.work, self.fleet.calibration.margin_s)
                return 1 << choice.index
            queue.take(ticket, now)
            del self._held[ticket.id]
            gone.append((request, self._book(request, decision.chosen, now)))
            return None

        if len(queue):
            queue.walk(now, attempt)
            if late := queue.newly_late():
                self.fleet.calibration.waited_too_long(late)
        return gone


_PLAIN = Complexity("", 0.0)


def make_engine(policy: Policy, number: int, zone: str, model: str, slots: int) -> Target:
    """A simulated engine as a target."""
    mask = policy.vocabulary.zone_mask([zone])
    return Target(
        id=f"engine-{number}",
        incarnation=f"engine-{number}",
        kind=Kind.REPLICA,
        zone=zone,
        evidence=Evidence(mask, mask, 0),
        address=Address("127.0.0.1", 1),
        models={model: model},
        slots=slots,
    )


def make_provider(policy: Policy, name: str, zone: str, models: Iterable[str]) -> Target:
    """A provider outside as a target, at uniform token prices."""
    mask = policy.vocabulary.zone_mask([zone])
    return Target(
        id=name,
        incarnation=name,
        kind=Kind.CLOUD,
        zone=zone,
        evidence=Evidence(mask, mask, 0),
        address=Address("127.0.0.1", 1),
        models={model: model for model in models},
        price=Price(1.0, 1.0),
    )
