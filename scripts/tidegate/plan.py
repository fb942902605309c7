"""The capacity planner: traffic replayed against simulated engines through the live decision, for more and fewer replicas.

A fleet is a number of replicas for each pool, which is a model in a zone. The search doubles the pools that failing classes could
use until every class keeps its limits, then takes replicas away, the dearest first, until no pool can lose one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from cluster.simulation.cluster import Scenario, Simulation
from cluster.simulation.engine import SimulatedRequest
from cluster.simulation.outcome import Outcome, Slo, summarise
from router.decision import Complexity, Facts
from router.placement.profile import EngineProfile
from router.placement.targets import Endpoint, Target
from router.policy import Policy
from tidegate.planfile import PlanError, PlanFile, config_of, key_digest, policy_of
from tidegate.profiles import ProfileError, find_profile
from tidegate.simulated_router import RouterSetup, SimulatedRouter, make_engine, make_provider
from tidegate.traffic import Traffic

_PLAIN = Complexity("", 0.0)
_WAITING = 1000
"""`admission.max_waiting` of the simulated routers: the default of live ones."""


@dataclass(frozen=True)
class Pool:
    """One model in one zone."""

    model: str
    zone: str
    price: float
    least: int
    most: int


@dataclass(frozen=True)
class Question:
    """A plan file with everything it names looked up.

    `rate`: requests per second; 0 keeps the traffic's own times, `load` times as dense.
    """

    plan: PlanFile
    policy: Policy
    profiles: Mapping[str, EngineProfile]
    pools: tuple[Pool, ...]
    rate: float = 0.0
    load: float = 1.0


@dataclass(frozen=True)
class ClassOutcome:
    """How one class fared. `places`: share of its requests by zone; refused ones are in none."""

    name: str
    label: str
    goal: float
    enough: bool
    outcome: Outcome
    places: dict[str, float]
    first_tokens: tuple[float, ...]
    """Hundredths of the distribution of first tokens, in seconds; empty where nothing was answered inside."""


@dataclass(frozen=True)
class Answer:
    """What a fleet would have done. `left`: requests by label that were answered outside the cluster."""

    replicas: tuple[int, ...]
    price: float
    classes: tuple[ClassOutcome, ...]
    left: dict[str, int]

    @property
    def enough(self) -> bool:
        """Whether every class keeps its goal."""
        return all(found.enough for found in self.classes)


def pose(plan: PlanFile, rate: float = 0.0, load: float = 1.0) -> Question:
    """Look up what a plan names.

    Raises:
        PlanError: a profile cannot be found.
    """
    try:
        profiles = {model.id: find_profile(model.profile) for model in plan.models}
    except ProfileError as error:
        raise PlanError(str(error)) from None
    pools = tuple(Pool(model.id, zone, model.price, model.least, model.most) for model in plan.models for zone in model.zones)
    return Question(plan, policy_of(plan), profiles, pools, rate, load)


class PlannedRouter(SimulatedRouter):
    """A router over pools, whose requests come from several classes."""

    def __init__(
        self, number: int, question: Question, setup: RouterSetup, replicas: Sequence[int], classes: Sequence[int]
    ) -> None:
        self._question, self._replicas, self._classes = question, replicas, classes
        keys = [question.policy.keys[bytes.fromhex(key_digest(wanted))] for wanted in question.plan.classes]
        self._asks = [(key, wanted.model) for key, wanted in zip(keys, question.plan.classes, strict=True)]
        super().__init__(number, setup, question.policy)

    def _engines(self) -> list[Target]:
        pools = [pool for pool, count in zip(self._question.pools, self._replicas, strict=True) for _ in range(count)]
        profiles = self._question.profiles
        return [
            make_engine(self.policy, number, pool.zone, pool.model, profiles[pool.model].slots)
            for number, pool in enumerate(pools)
        ]

    def _providers(self) -> list[Target]:
        external = sorted(zone for zone, about in self._question.plan.zones.items() if about.external)
        return [make_provider(self.policy, f"provider-{zone}", zone, self._question.profiles) for zone in external]

    def facts(self, request: SimulatedRequest, waited_s: float = 0.0) -> Facts:
        """The facts the live router would have gathered."""
        key, model = self._asks[self._classes[request.index]]
        return Facts(
            request_id=str(request.index),
            key=key,
            endpoint=Endpoint.CHAT,
            model=model,
            label=key.ceiling,
            complexity=_PLAIN,
            prompt_bytes=request.prompt * 4,
            prompt_tokens=request.prompt,
            waited_s=waited_s,
            priority=key.priority,
        )


def simulate(question: Question, traffic: Traffic, replicas: Sequence[int]) -> Answer:
    """Replay the traffic against a fleet.

    Args:
        question: what is asked.
        traffic: the requests.
        replicas: how many of each pool, in the order of `question.pools`.

    Raises:
        PlanError: a rate is needed, because all requests have the same time.
    """
    rows = traffic.rows
    speed = question.rate * traffic.span_s / len(rows) if question.rate else question.load
    if speed <= 0:
        raise PlanError("all requests of the trace have the same time: give a rate that fits")
    slo = config_of(question.plan).slo
    engines = [pool for pool, count in zip(question.pools, replicas, strict=True) for _ in range(count)]
    profiles = tuple(question.profiles[pool.model] for pool in engines)
    largest = max(question.profiles.values(), key=lambda profile: profile.kv_tokens)
    setup = RouterSetup(
        largest,
        Slo(slo.ttft_ms / 1e3, slo.tpot_ms / 1e3 if slo.tpot_ms else float("inf"), slo.stretch),
        goal=slo.goal,
        max_wait_s=slo.max_wait_ms / 1e3,
        queue=_WAITING,
    )
    requests = traffic.requests()
    scenario = Scenario(largest, speed=speed, profiles=profiles, engines=len(profiles))
    Simulation(scenario, requests, lambda number: PlannedRouter(number, question, setup, replicas, traffic.classes)).run()
    return _sum_up(question, traffic, replicas, requests, [pool.zone for pool in engines])


def _sum_up(
    question: Question, traffic: Traffic, replicas: Sequence[int], requests: Sequence[SimulatedRequest], zones: Sequence[str]
) -> Answer:
    plan = question.plan
    outside = {
        wanted.name: next((z for z in plan.labels[wanted.label] if plan.zones[z].external), "outside") for wanted in plan.classes
    }
    found, left = [], dict.fromkeys(plan.labels, 0)
    for number, wanted in enumerate(plan.classes):
        own = [request for request in requests if traffic.classes[request.index] == number]
        profile = question.profiles[wanted.model]
        limits = Slo(wanted.ttft_ms / 1e3, wanted.tpot_ms / 1e3 if wanted.tpot_ms else float("inf"), wanted.stretch)
        outcome = summarise(own, profile, limits)
        places: Counter[str] = Counter()
        for request in own:
            if request.outcome == "local":
                places[zones[request.engine]] += 1
            elif request.outcome == "cloud":
                places[outside[wanted.name]] += 1
                left[wanted.label] += 1
        shares = {zone: count / len(own) for zone, count in sorted(places.items())}
        first = sorted(request.first - request.arrival for request in own if request.outcome == "local" and request.first >= 0)
        hundredths = tuple(first[min(len(first) - 1, int(i * len(first) / 100))] for i in range(101)) if first else ()
        # A class without any request in this traffic asks for nothing.
        enough = not own or (outcome.met >= wanted.goal and outcome.spilled <= wanted.most_spilled)
        found.append(ClassOutcome(wanted.name, wanted.label, wanted.goal, enough, outcome, shares, hundredths))
    price = sum(pool.price * count for pool, count in zip(question.pools, replicas, strict=True))
    return Answer(tuple(replicas), price, tuple(found), left)


def search(question: Question, traffic: Traffic) -> Iterator[Answer]:
    """Answers on the way to a fleet that is enough and can spare no replica; that one comes last.

    Raises:
        PlanError: the most that the plan allows is not enough.
    """
    tried: dict[tuple[int, ...], Answer] = {}
    pools = question.pools

    def look(replicas: tuple[int, ...]) -> Answer:
        if replicas not in tried:
            tried[replicas] = simulate(question, traffic, replicas)
        return tried[replicas]

    current = tuple(max(pool.least, 1 if _is_used(question, pool) else 0) for pool in pools)
    answer = look(current)
    yield answer
    while not answer.enough:
        failing = [found for found in answer.classes if not found.enough]
        helps = [any(_may_help(question, pool, found.name) for found in failing) for pool in pools]
        grown = tuple(
            min(pool.most, max(1, 2 * count)) if more else count for pool, count, more in zip(pools, current, helps, strict=True)
        )
        if grown == current:
            raise PlanError(_not_enough(question, answer))
        current, answer = grown, look(grown)
        yield answer
    for place in sorted(range(len(pools)), key=lambda place: -pools[place].price):
        low, high = pools[place].least - 1, current[place]
        while high - low > 1:
            middle = (low + high) // 2
            answer = look((*current[:place], middle, *current[place + 1 :]))
            yield answer
            if answer.enough:
                high = middle
            else:
                low = middle
        current = (*current[:place], high, *current[place + 1 :])
    yield look(current)


def _is_used(question: Question, pool: Pool) -> bool:
    return any(_may_help(question, pool, wanted.name) for wanted in question.plan.classes)


def _may_help(question: Question, pool: Pool, name: str) -> bool:
    """Whether engines of a pool may serve a class."""
    wanted = next(wanted for wanted in question.plan.classes if wanted.name == name)
    return wanted.model == pool.model and pool.zone in question.plan.labels[wanted.label]


def _not_enough(question: Question, answer: Answer) -> str:
    missed = ", ".join(
        f"{found.name} ({100 * found.outcome.met:.1f} of {100 * found.goal:g} %)" for found in answer.classes if not found.enough
    )
    return f"{fleet_text(question, answer.replicas)} are not enough for {missed}; raise `most` (--most), or the limits"


def fleet_text(question: Question, replicas: Sequence[int]) -> str:
    """A fleet in words."""
    parts = [
        f"{count} x {pool.model}" + (f" in {pool.zone}" if len(question.plan.zones) > 1 else "")
        for pool, count in zip(question.pools, replicas, strict=True)
    ]
    return " + ".join(parts)


def to_json(question: Question, answers: Sequence[Answer], notes: Sequence[str] = ()) -> str:
    """Question and answers as JSON; the last answer is the final one."""
    plan = question.plan.model_dump(mode="json")
    told = [_told(question, answer) for answer in answers]
    document = {
        "simulated": True,
        "plan": plan,
        "plan_sha256": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest(),
        "rate": question.rate,
        "load": question.load,
        "notes": list(notes),
        "tried": told,
        "answer": told[-1],
    }
    return json.dumps(document, indent=1)


def _told(question: Question, answer: Answer) -> dict[str, object]:
    pools = [
        {"model": pool.model, "zone": pool.zone, "replicas": count}
        for pool, count in zip(question.pools, answer.replicas, strict=True)
    ]
    classes = [
        {
            "name": found.name,
            "label": found.label,
            "goal": found.goal,
            "enough": found.enough,
            "places": found.places,
            **asdict(found.outcome),
        }
        for found in answer.classes
    ]
    return {"enough": answer.enough, "price": answer.price, "pools": pools, "left_the_cluster": answer.left, "classes": classes}
