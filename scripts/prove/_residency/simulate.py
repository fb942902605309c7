"""Seeded simulation of the real code: routers, guards and an oracle that judges every byte in plain sets.

Real: `resolve_label`, lineage, `decide` and its screening, `Fleet`, `InFlight`, the pass, the guard's check and its policy copy,
the cache salt. Simulated: the clock, the network, the targets, and the order of events, which a seed decides: reloads that
reach router and guards at different times, targets that crash and come back elsewhere, stale membership, a router that
crashes with or without its lineage, evidence and relaxations that end, failures at every step.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from _residency.judge import Judge, Talk, Violation, refused
from _residency.processes import PATH, SECRET, Exchange, Process, target_key
from _residency.worlds import HOUR, INSIDE, MODELS, OUTSIDE, START, TAGS, TENANTS, Allowed, Rules, both, make_rules
from cluster.reports import ReplicaFacts, build_report
from router.decide import decide
from router.decision import Complexity, Decision, Facts
from router.fixed_targets import retargeter
from router.placement.fleet import Fleet
from router.placement.targets import Membership, Report, Target, View
from router.residency.admission import label_request, permission_for
from router.residency.cache_salt import cache_salt, salt_key
from router.residency.classify.cache import Outcome
from router.residency.classify.kinds import Kind
from router.residency.classify.rule import distinct_evidence, needed
from router.residency.conversation import Conversation, lineage_key, read_conversation
from router.residency.declassify import redacted_label
from router.residency.guard import Place, issue_pass
from router.residency.inflight import InFlight, Ticket
from router.residency.label import Evidence, translate_label
from router.residency.lineage import LineageBook
from router.wire.errors import ApiError

LINEAGE_KEY, SALT_KEY = lineage_key(SECRET), salt_key(SECRET)
KEYS_OF = {tenant: [key for key, whose in TENANTS.items() if whose == tenant] for tenant in ("one", "two")}
STANDS = [(zone,) for zone in (*INSIDE, *INSIDE, *INSIDE, "?")] + list(itertools.combinations(INSIDE, 2))
"""Where an engine may stand; a group that shares a cache stands in two zones."""
_PAIRS = list(itertools.permutations(TAGS, 2))
TAGGINGS = [()] * 3 * len(_PAIRS) + [(tag,) for tag in TAGS] * (2 * len(_PAIRS) // len(TAGS)) + _PAIRS
"""What the headers of a request say: half the time nothing, in a sixth of all two tags."""
_REPLAY_EVERY = 8
"""Of how many decisions one is made again with nothing remembered."""

# Pure and the same in every run: done once each, for a run costs little more than these would.


@lru_cache(10_000)
def retarget_between(before: Rules, after: Rules) -> Callable[[Target], Target | None]:
    """How `after` sees what is known under `before`."""
    retarget = retargeter(after.config, before.policy, after.policy)
    known: dict[tuple[str, int, Evidence], Target | None] = {}

    def remembered(target: Target) -> Target | None:
        asked = (target.incarnation, target.address.port, target.evidence)
        if asked not in known:
            known[asked] = retarget(target)
        return known[asked]

    return remembered


@lru_cache(50_000)
def conversation_of(tenant: str, words: tuple[str, ...]) -> Conversation:
    """The hashes of what was said in turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]
    return read_conversation(LINEAGE_KEY, tenant, PATH, {"messages": messages})


@lru_cache(50_000)
def report_of(rules: Rules, port: int, incarnation: str, place: Place) -> Report:
    """What the membership says of one replica, in the vocabulary of these rules."""
    facts = ReplicaFacts(f"t{port}", incarnation, "z", place, "h", port, MODELS[port % 2])
    return build_report(facts, rules.policy.vocabulary)


def forget() -> None:
    """Forget what is remembered between runs, for code that is not what it was."""
    for remembered in (target_key, retarget_between, conversation_of, report_of):
        remembered.cache_clear()


class World:
    """One run. Everything random comes from its seed."""

    moves = True
    """Whether targets come back elsewhere, under another incarnation."""
    fails = 0.2
    """How often a target fails with each byte."""
    egress_is_there = 0.85
    restless = 0.5

    def __init__(self, seed: int, pool: list[Rules]) -> None:
        self.chance: Callable[[], float] = random.Random(seed).random
        self.pool = pool
        self.now = START
        self.rules = self.pick(pool)
        self.serial = 0
        self.bytes_sent = 0
        self.decided = seed
        self.processes: dict[int, Process] = {}
        for port in range(1, self.pick((2, 3, 4))):
            self.start_process(port)
        self.start_egress()
        self.start_router()

    def pick(self, options: Sequence[Any]) -> Any:
        """One of some."""
        return options[int(self.chance() * len(options))]

    def start_process(self, port: int) -> None:
        """An engine starts, wherever its node happens to stand now."""
        self.serial += 1
        zones = self.pick(STANDS)
        duties = ("baa",) if self.chance() < 0.5 else ("baa", "zdr")
        stores = zones if self.chance() < 0.8 else self.pick(STANDS)
        self.processes[port] = Process(f"i{self.serial}", Place(zones, stores, duties), self.rules)

    def start_egress(self) -> None:
        """The egress starts."""
        self.serial += 1
        self.egress = f"e{self.serial}"
        self.processes[0] = Process(f"cloud@{self.egress}", Place((OUTSIDE,), (OUTSIDE,), ()), self.rules)

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
        """The membership as it is now reaches the router, in its own vocabulary; the egress may be away."""
        running = self.running
        reports = [
            report_of(running, port, process.incarnation, process.place) for port, process in self.processes.items() if port
        ]
        self.fleet.update([*(running.cloud_reports(self.egress) if self.chance() < self.egress_is_there else ()), *reports])

    def adopt(self) -> None:
        """The router takes the new policy, as `RouterState.adopt` does."""
        before, self.running = self.running, self.rules
        self.fleet.adopt(retarget_between(before, self.running), float("inf"))
        reading, unread = self.running.reading, None
        if reading is not None and self.running.says() != before.says():
            unread = reading.tightest
        self.inflight.adopt(self.running.policy, self.evidence_of, self.now, unread)

    def evidence_of(self, target: Target) -> Evidence | None:
        """As `RouterState` has it."""
        for known in self.fleet.membership.targets:
            if known.incarnation == target.incarnation:
                return known.evidence
        return target.evidence if target.kind.value == "replica" else None

    def replay(self, facts: Facts, view: View, decision: Decision) -> None:
        """Now and then decide again, from the same facts and with nothing remembered: I8."""
        self.decided += 1
        if self.decided % _REPLAY_EVERY:
            return
        afresh = replace(view, membership=Membership(view.membership.version, view.membership.targets))
        again = decide(facts, self.running.policy, afresh, self.now)
        if (again.chosen, again.refusal, again.models, again.saturated) != (
            decision.chosen,
            decision.refusal,
            decision.models,
            decision.saturated,
        ):
            raise Violation("I8: the same facts were decided differently")

    def happen(self) -> None:
        """One thing that nobody asked for."""
        event = self.chance()
        if event < 0.22:
            self.rules = self.pick(self.pool)
            if self.chance() < 0.7:
                self.adopt()
        elif event < 0.40:
            self.adopt()
        elif event < 0.55:
            for process in self.processes.values():
                if self.chance() < 0.8:
                    process.take(self.rules)
        elif event < 0.72 and not self.moves:
            self.refresh()
        elif event < 0.68:
            self.start_process(self.pick([port for port in self.processes if port] or [1]))
        elif event < 0.72:
            self.start_egress()
        elif event < 0.86:
            self.refresh()
        elif event < 0.94:
            self.now += self.pick((1.0, 30.0, HOUR, 20 * HOUR))
            self.inflight.recheck(self.evidence_of, self.now)
        else:
            self.start_router(self.book if self.chance() < 0.5 else None)


def request(world: World, key: str, tags: tuple[str, ...], model: str, talk: Talk) -> Generator[None, None, None]:
    """One request as the handler walks it; every `yield` is an `await` in which the world may change."""
    rules = world.running
    judge = Judge(world, key, tags, model, talk)
    grant = rules.by_key.get(key)
    if grant is None:
        return
    yield  # the body
    if world.generation != judge.generation:
        return
    rules = world.running
    grant = rules.policy.keys.get(grant.digest)
    if grant is None:
        return
    conversation = conversation_of(grant.tenant, talk.words)
    length, inherited = len(talk.words), talk.inherited(rules)
    judge.see_policy()
    assert judge.label is not None
    if inherited is not None:
        judge.label = both(judge.label, inherited)
    try:
        labelled = label_request(grant, tags, rules.policy, world.book, conversation, {}, world.now)
    except ApiError as error:
        refused(judge, error)
        return
    talk.bind(rules, judge.label, length)
    ticket = world.inflight.enter(grant, tags, labelled.label)
    if rules.reading is not None:
        yield from classified(world, judge, rules, ticket, conversation, inherited)
    facts = Facts("r", grant, PATH, model, labelled.label, Complexity("basic", 0.0), 40, 10)
    try:
        yield from attempts(world, judge, facts, ticket)
    except ApiError as error:
        if judge.generation == world.generation:
            refused(judge, error)
    finally:
        world.inflight.leave(ticket)


def classified(
    world: World, judge: Judge, rules: Rules, ticket: Ticket, conversation: Conversation, inherited: Allowed | None
) -> Generator[None, None, None]:
    """Classification and redaction as the handler walks them: what is found in a text is given, the rest is real."""
    reading, label, grant, asked = rules.reading, ticket.label, ticket.grant, judge.label
    assert reading is not None and asked is not None
    if not needed(reading, label, distinct_evidence(world.fleet.membership), world.now):
        ticket.unread = reading.tightest
        return
    yield  # the scan, in turns
    if judge.generation != world.generation:
        return
    outcome = Outcome(frozenset({Kind.IBAN})) if judge.sensitive else Outcome()
    label = label.meet(reading.label_for(outcome) or label)
    if world.running is not rules:
        label = translate_label(label, rules.policy.vocabulary, world.running.policy.vocabulary)
    ticket.tighten(label)
    if judge.sensitive:
        if rules.found is not None:
            judge.talk.bind(world.running, both(asked, rules.found), len(conversation.prefixes))
        world.book.record(conversation, grant.tenant, ticket.label, world.running.policy, world.now)
    if world.running is not rules or grant.redacted is None or not judge.sensitive:
        return
    others = [rules.policy.tags[tag] for tag in ticket.tags]
    past = world.book.inherited(conversation, rules.policy).label
    label = redacted_label(grant.redacted, others if past is None else [*others, past])
    yield  # the redaction, in a thread
    if judge.generation == world.generation and world.inflight.declassify(ticket, label, rules.policy, grant):
        judge.redact(inherited)


def attempts(world: World, judge: Judge, facts: Facts, ticket: Ticket) -> Generator[None, None, None]:
    """Up to three tries, each decided anew under the policy of that moment."""
    for attempt in range(3):
        if attempt:
            ticket.hold()
        facts = world.inflight.current(ticket, facts)
        policy, view = world.running.policy, world.fleet.view(world.now)
        decision = decide(facts, policy, view, world.now)
        world.replay(facts, view, decision)
        choice = decision.chosen
        if choice is None:
            assert decision.refusal is not None
            raise ApiError(decision.refusal.status, decision.refusal.code, decision.refusal.message)
        world.fleet.set_saturated(facts.label, decision.models, decision.saturated)
        exchange = Exchange()
        ticket.begin(choice.target, choice.model, exchange)
        text = world.running.text(policy.label_for(ticket.label, choice.model))
        incarnation = choice.target.incarnation
        permission = permission_for(facts.request_id, ticket, choice.model, incarnation, policy.epoch, text, world.now)
        token = issue_pass(target_key(choice.target.incarnation), permission, "POST", PATH)
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
    for _ in range(int(world.chance() * 4)):
        yield
        if judge.generation != world.generation:
            return True
        if exchange.failure:
            return world.chance() < 0.5  # before the first byte it is tried elsewhere
        judge.flowing(process, "a byte")
        if world.chance() < world.fails:
            return False
    return True


def run(seed: int, pool: list[Rules]) -> int:
    """One run of a few requests in a changing world; returns how many bodies reached a target.

    Raises:
        Violation: an invariant does not hold.
    """
    world = World(seed, pool)
    pick, chance = world.pick, world.chance
    talks = [Talk(pick(("one", "two")), f"{number}: tell me what this long document says about it") for number in (0, 1)]
    for talk in talks:
        talk.sensitive = chance() < 0.3
    active: list[Generator[None, None, None]] = []
    left = pick((2, 3, 4, 5))
    book = world.book
    while left or active:
        if left and (not active or chance() < 0.4):
            left -= 1
            talk = pick(talks)
            active.append(request(world, pick(KEYS_OF[talk.tenant]), pick(TAGGINGS), pick((*MODELS, "auto")), talk))
        stepping = pick(active)
        if next(stepping, stepping) is stepping:
            active.remove(stepping)
            pick(talks).go_on(f"and {left}?", chance() < 0.2)
        if chance() < world.restless:
            world.happen()
            if world.book is not book:
                book = world.book
                for talk in talks:
                    talk.lost, talk.bound = True, []
    return world.bytes_sent


def make_pool(seed: int, size: int = 40, wanted: Callable[[Rules], bool] = lambda rules: True) -> list[Rules]:
    """Policies for many runs, all of a wanted kind: compiling one costs more than a run."""
    random_ = random.Random(seed)
    made = filter(wanted, (make_rules(random_) for _ in itertools.count()))
    return list(itertools.islice(made, size))
