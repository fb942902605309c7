"""Seeded simulation of the real code: routers, guards and an oracle that judges every byte in plain sets.

Real: `resolve_label`, lineage, `decide` and its screening, `Fleet`, `InFlight`, the pass, the guard's check and its policy copy,
the cache salt. Simulated: the clock, the network, the targets, and the order of events, which a seed decides: reloads that
reach router and guards at different times, targets that crash and come back elsewhere, stale membership, a router that
crashes with or without its lineage, evidence and relaxations that end, failures at every step.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from functools import reduce

from msgspec.structs import replace

from _residency.worlds import HOUR, INSIDE, MODELS, OUTSIDE, START, TAGS, TENANTS, Allowed, Rules, allowed_at, both, make_rules
from cluster.reports import ReplicaFacts, build_report
from router.decide import decide
from router.decision import Complexity, Facts
from router.placement.fleet import Fleet
from router.placement.targets import Address, Endpoint, Report, Target
from router.policy import fixed_targets, retargeter
from router.residency.admission import label_request, permission_for
from router.residency.cache_salt import cache_salt, salt_key
from router.residency.conversation import lineage_key, read_conversation
from router.residency.guard import GuardPolicy, PassRefused, Place, check_pass, derive_target_key, issue_pass
from router.residency.inflight import POLICY_REVOKED, InFlight, Ticket
from router.residency.label import Evidence
from router.residency.lineage import LineageBook
from router.wire.errors import ApiError

SECRET = b"s" * 32
PATH = Endpoint.CHAT
TYPED = frozenset({"residency_denied", "residency_capacity", "overloaded", "model_not_found", "invalid_request", POLICY_REVOKED})
LINEAGE_KEY, SALT_KEY = lineage_key(SECRET), salt_key(SECRET)


class Violation(AssertionError):
    """An invariant does not hold; the text names it."""


class Process:
    """What really stands at an address: one incarnation of an engine or egress, with its own guard."""

    def __init__(self, incarnation: str, place: Place, copy: GuardPolicy) -> None:
        self.incarnation = incarnation
        self.place = place
        self.truth = (frozenset(place.process), frozenset(place.store), frozenset(place.duties))
        self.key = derive_target_key(SECRET, incarnation)
        self.copy = copy
        self.cache: dict[str, tuple[str, str]] = {}

    def admits(self, token: str, now: float) -> bool:
        """The guard, as `EngineGuard` has it: the pass, then its own policy."""
        try:
            permission = check_pass(self.key, token, "POST", PATH, self.incarnation, self.place, now)
        except PassRefused:
            return False
        return self.copy.refuses(permission, self.place, now) is None


class Exchange:
    """An exchange as the router's code cuts it."""

    connection = None

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.failure = ""

    def broken(self, why: str) -> None:
        """It was cut."""
        self.failure = why


class Talk:
    """One conversation of a client. `bound` holds, per request so far, how long it was and what it is bound to."""

    def __init__(self, tenant: str, text: str) -> None:
        self.tenant = tenant
        self.messages: list[dict[str, str]] = [{"role": "user", "content": text}]
        self.bound: list[tuple[int, Allowed]] = []
        self.lost = False

    def inherited(self, rules: Rules) -> Allowed | None:
        """What the requests before this one bind it to; after a loss, what the tags that require lineage ask for."""
        found = rules.asking if self.lost and len(self.messages) > 1 else None
        for length, label in self.bound:
            if length < len(self.messages):
                found = label if found is None else both(found, label)
        return found


class World:
    """One run. Everything random comes from its seed."""

    def __init__(self, seed: int, pool: list[Rules]) -> None:
        self.random = random.Random(seed)
        self.pool = pool
        self.now = START
        self.rules = self.random.choice(pool)
        self.serial = 0
        self.bytes_sent = 0
        self.processes: dict[int, Process] = {}
        for port in range(1, self.random.randint(2, 4)):
            self.start_process(port)
        self.start_egress()
        self.start_router()

    def start_process(self, port: int) -> None:
        """An engine starts, wherever its node happens to stand now."""
        self.serial += 1
        zone = self.random.choice((*INSIDE, *INSIDE, "?"))
        duties = ("baa",) if self.random.random() < 0.5 else ("baa", "zdr")
        self.processes[port] = Process(f"i{self.serial}", Place((zone,), (zone,), duties), self.rules.copy)

    def start_egress(self) -> None:
        """The egress starts."""
        self.serial += 1
        self.egress = f"e{self.serial}"
        self.processes[0] = Process(f"cloud@{self.egress}", Place((OUTSIDE,), (OUTSIDE,), ()), self.rules.copy)

    def start_router(self, book: LineageBook | None = None) -> None:
        """A router starts, with what is left of its lineage."""
        rules = self.rules
        self.running = rules
        self.history: list[tuple[float, Rules]] = []
        self.fleet = Fleet(rules.policy.daily_budget_usd)
        self.inflight = InFlight(rules.policy)
        self.book = book or LineageBook(1000)
        self.generation = self.serial = self.serial + 1
        self.refresh()

    def refresh(self) -> None:
        """The membership as it is now reaches the router, in its own vocabulary."""
        reports = [
            build_report(
                ReplicaFacts(f"t{port}", process.incarnation, "z", process.place, "h", port, MODELS[port % 2]),
                self.running.policy.vocabulary,
            )
            for port, process in self.processes.items()
            if port
        ]
        cloud = [Report(target) for target in fixed_targets(self.running.config, Address("h", 9999), self.egress)]
        self.fleet.update([*cloud, *reports])

    def adopt(self) -> None:
        """The router takes the new policy, as `RouterState.adopt` does."""
        before, self.running = self.running, self.rules
        self.fleet.adopt(retargeter(self.running.config, before.policy, self.running.policy), float("inf"))
        self.inflight.adopt(self.running.policy, self.evidence_of, self.now)

    def evidence_of(self, target: Target) -> Evidence | None:
        """As `RouterState` has it."""
        for known in self.fleet.membership.targets:
            if known.incarnation == target.incarnation:
                return known.evidence
        return target.evidence if target.kind.value == "replica" else None

    def happen(self) -> None:
        """One thing that nobody asked for."""
        event = self.random.random()
        if event < 0.22:
            self.rules = self.random.choice(self.pool)
            if self.random.random() < 0.7:
                self.adopt()
        elif event < 0.40:
            self.adopt()
        elif event < 0.55:
            for process in self.processes.values():
                if self.random.random() < 0.8:
                    process.copy = self.rules.copy
        elif event < 0.68:
            self.start_process(self.random.choice([port for port in self.processes if port] or [1]))
        elif event < 0.72:
            self.start_egress()
        elif event < 0.86:
            self.refresh()
        elif event < 0.94:
            self.now += self.random.choice((1.0, 30.0, HOUR, 20 * HOUR))
            self.inflight.recheck(self.evidence_of, self.now)
        else:
            self.start_router(self.book if self.random.random() < 0.5 else None)


class Judge:
    """What the semantics say of one request, kept beside the code and never given to it."""

    def __init__(self, world: World, key: str, tags: tuple[str, ...], model: str, talk: Talk) -> None:
        self.world, self.key, self.tags, self.model, self.talk = world, key, tags, model, talk
        self.label: Allowed | None = None
        self.sent = 0
        self.generation = world.generation
        self.last: Allowed | None = None

    def see_policy(self) -> None:
        """The label under the policy that the router runs now takes the meet with everything before."""
        own = self.world.running.label(self.key, self.tags, self.world.now)
        if own is None:
            own = (frozenset(), frozenset(), frozenset())
        self.label = own if self.label is None else both(self.label, own)

    def sending(self, ticket: Ticket, process: Process) -> None:
        """A body is about to reach `process`: I1 and I2."""
        self.world.bytes_sent += 1
        self.sent += 1
        place = self.world.running.policy.place_of(ticket.label)
        used: Allowed = (frozenset(place.process), frozenset(place.store), frozenset(place.duties))
        if self.last is not None and both(self.last, used) != used:
            raise Violation("I2: a label widened in flight")
        self.last = used
        self.flowing(process, "send")

    def flowing(self, process: Process, what: str) -> None:
        """Bytes flow between the client and `process`: I1."""
        self.see_policy()
        assert self.label is not None
        label = self.label
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


def request(world: World, key: str, tags: tuple[str, ...], model: str, talk: Talk) -> Generator[None, None, None]:
    """One request as the handler walks it; every `yield` is an `await` in which the world may change."""
    rules = world.running
    judge = Judge(world, key, tags, model, talk)
    grant = next((grant for grant in rules.policy.keys.values() if grant.id == key), None)
    if grant is None:
        return
    yield  # the body
    if world.generation != judge.generation:
        return
    rules = world.running
    grant = rules.policy.keys.get(grant.digest)
    if grant is None:
        return
    conversation = read_conversation(LINEAGE_KEY, grant.tenant, PATH, {"messages": talk.messages})
    length, inherited = len(talk.messages), talk.inherited(rules)
    judge.see_policy()
    if inherited is not None:
        assert judge.label is not None
        judge.label = both(judge.label, inherited)
    try:
        labelled = label_request(grant, tags, rules.policy, world.book, conversation, {}, world.now)
    except ApiError as error:
        refused(judge, error)
        return
    bind(judge, rules, talk, length)
    ticket = world.inflight.enter(grant, tags, labelled.label)
    facts = Facts("r", grant, PATH, model, labelled.label, Complexity("basic", 0.0), 40, 10)
    try:
        yield from attempts(world, judge, facts, ticket)
    except ApiError as error:
        if judge.generation == world.generation:
            refused(judge, error)
    finally:
        world.inflight.leave(ticket)


def bind(judge: Judge, rules: Rules, talk: Talk, length: int) -> None:
    """Follow-ups are bound to what this request is bound to, where that narrows anything for the tenant."""
    assert judge.label is not None
    ceilings = [
        wider
        for grant in rules.grants.values()
        if grant.tenant == talk.tenant
        for wider in (grant.ceiling, *(_wider(grant.ceiling, more) for more, _, _ in grant.relaxed))
    ]
    if both(reduce(_wider, ceilings), judge.label) != reduce(_wider, ceilings):
        talk.bound.append((length, judge.label))
        talk.lost = False
    elif rules.asking is not None:
        talk.lost = False


def _wider(a: Allowed, b: Allowed) -> Allowed:
    return (a[0] | b[0], a[1] | b[1], a[2] & b[2])


def attempts(world: World, judge: Judge, facts: Facts, ticket: Ticket) -> Generator[None, None, None]:
    """Up to three tries, each decided anew under the policy of that moment."""
    for _ in range(3):
        facts = world.inflight.current(ticket, facts)
        policy, view = world.running.policy, world.fleet.view(world.now)
        decision = decide(facts, policy, view, world.now)
        if decide(facts, policy, view, world.now) != decision:
            raise Violation("I8: the same facts were decided differently")
        choice = decision.chosen
        if choice is None:
            assert decision.refusal is not None
            raise ApiError(decision.refusal.status, decision.refusal.code, decision.refusal.message)
        world.fleet.set_saturated(facts.label, decision.models, decision.saturated)
        exchange = Exchange()
        ticket.begin(choice.target, choice.model, exchange)
        text = policy.label_text(policy.label_for(ticket.label, choice.model))
        incarnation = choice.target.incarnation
        permission = permission_for(facts.request_id, ticket, choice.model, incarnation, policy.epoch, text, world.now)
        token = issue_pass(derive_target_key(SECRET, choice.target.incarnation), permission, "POST", PATH)
        salt = cache_salt(SALT_KEY, facts.key.tenant, permission.label_text)
        yield  # the connection
        if judge.generation != world.generation:
            return
        process = world.processes.get(0 if choice.target.kind.value == "cloud" else choice.target.address.port)
        if not exchange.failure and process is not None and process.admits(token, world.now):
            judge.model = choice.model
            judge.sending(ticket, process)
            judge.salted(process, salt, permission.label_text)
            done = yield from answer(world, judge, exchange, process)
            if done:
                return
        ticket.end()
        facts = replace(facts, excluded=facts.excluded | {choice.target.incarnation})


def answer(world: World, judge: Judge, exchange: Exchange, process: Process) -> Generator[None, None, bool]:
    """Chunks until the end, a failure of the target, or the cut; True when the request needs no other try."""
    for _ in range(world.random.randint(0, 3)):
        yield
        if judge.generation != world.generation:
            return True
        if exchange.failure:
            return world.random.random() < 0.5  # before the first byte it is tried elsewhere
        judge.flowing(process, "a byte")
        if world.random.random() < 0.2:
            return False
    return True


def refused(judge: Judge, error: ApiError) -> None:
    """I7: a refusal has a code and status of the contract; one for residency comes before any byte was sent."""
    if error.code not in TYPED or error.status not in (400, 403, 404, 503):
        raise Violation(f"I7: {error.status} {error.code}")
    if error.code in ("residency_denied", "invalid_request") and judge.sent and judge.last is None:
        raise Violation("I7: bytes were sent before a refusal")


def run(seed: int, pool: list[Rules]) -> int:
    """One run of a few requests in a changing world; returns how many bodies reached a target.

    Raises:
        Violation: an invariant does not hold.
    """
    world = World(seed, pool)
    choose = world.random
    talks = [
        Talk(choose.choice(("one", "two")), f"{seed} {number}: tell me what this long document says about it")
        for number in (0, 1)
    ]
    active: list[Generator[None, None, None]] = []
    left = choose.randint(2, 5)
    book = world.book
    while left or active:
        if left and (not active or choose.random() < 0.4):
            left -= 1
            talk = choose.choice(talks)
            key = choose.choice([key for key, tenant in TENANTS.items() if tenant == talk.tenant])
            tags = tuple(choose.sample(TAGS, choose.choice((0, 0, 0, 1, 1, 2))))
            active.append(request(world, key, tags, choose.choice((*MODELS, "auto")), talk))
        stepping = choose.choice(active)
        if next(stepping, stepping) is stepping:
            active.remove(stepping)
            talk = choose.choice(talks)
            talk.messages = [*talk.messages, {"role": "assistant", "content": "yes"}, {"role": "user", "content": f"and {left}?"}]
        if choose.random() < 0.5:
            world.happen()
            if world.book is not book:
                book = world.book
                for talk in talks:
                    talk.lost, talk.bound = True, []
    return world.bytes_sent


def make_pool(seed: int, size: int = 40) -> list[Rules]:
    """Policies for many runs: compiling one costs more than a run."""
    random_ = random.Random(seed)
    return [make_rules(random_) for _ in range(size)]
