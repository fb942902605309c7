"""The capacity planner: a trace replayed against simulated engines through the live decision, for more and more replicas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.simulation.cluster import Scenario, Simulation
from cluster.simulation.outcome import Outcome, Slo, summarise
from cluster.simulation.trace import Row, link_turns, make_documents_trace, make_tools_trace, read_trace
from router.placement.profile import KNOWN, EngineProfile
from tidegate.simulated_router import RouterSetup, SimulatedRouter, make_policy

MADE_UP: dict[str, Callable[[], list[Row]]] = {"tools": make_tools_trace, "documents": make_documents_trace}
"""Traces that need no file."""


class PlanError(ValueError):
    """The question cannot be answered as asked; the text says what to change."""


@dataclass(frozen=True)
class Question:
    """How many replicas keep the limits.

    `rate` is requests per second; 0 keeps the trace's own arrival times. `cloud` lets requests spill, and then `goal` counts
    answers from outside as well. `max_wait_s` bounds what a request is held before it is refused.
    """

    profile: EngineProfile
    slo: Slo
    goal: float = 0.95
    rate: float = 0.0
    cloud: bool = False
    max_wait_s: float = 30.0
    most: int = 64


@dataclass(frozen=True)
class Answer:
    """What so many replicas would have done."""

    replicas: int
    enough: bool
    outcome: Outcome


def read_rows(trace: str) -> list[Row]:
    """The rows of a file, or of a made-up trace by name.

    Raises:
        PlanError: there is no such file or name, or it holds too few requests to say anything.
        TraceError: the file is malformed.
    """
    if trace in MADE_UP:
        return MADE_UP[trace]()
    path = Path(trace)
    if not path.is_file():
        raise PlanError(f"no trace {trace}: name a file, or one of {', '.join(MADE_UP)}")
    rows = read_trace(path)
    if len(rows) < 50:
        raise PlanError(f"{trace} has {len(rows)} requests; at least 50 are needed for shares of requests to mean anything")
    return rows


def find_profile(name: str) -> EngineProfile:
    """A known profile by name, or one from a JSON file of `EngineProfile`'s fields.

    Raises:
        PlanError: neither exists, or the file does not fit.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if path.is_file():
        try:
            return EngineProfile(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise PlanError(f"{name} is no engine profile: {error}") from None
    raise PlanError(f"no engine profile {name}: name a JSON file, or one of {', '.join(KNOWN)}")


def simulate(question: Question, rows: list[Row], replicas: int) -> Answer:
    """Replay the trace against so many replicas."""
    span = rows[-1][0] - rows[0][0]
    speed = question.rate * span / len(rows) if question.rate else 1.0
    if speed <= 0:
        raise PlanError("all requests of the trace have the same time: give a rate")
    setup = RouterSetup(
        question.profile,
        question.slo,
        replicas,
        question.profile,
        question.cloud,
        min(0.995, question.goal + 0.005),
        question.max_wait_s,
        queue=0 if question.cloud else 1000,
    )
    policy = make_policy(setup)
    requests = link_turns(rows)
    scenario = Scenario(question.profile, replicas, speed=speed)
    Simulation(scenario, requests, lambda number: SimulatedRouter(number, setup, policy)).run()
    outcome = summarise(requests, question.profile, question.slo)
    return Answer(replicas, outcome.met >= question.goal, outcome)


def search(question: Question, rows: list[Row]) -> Iterator[Answer]:
    """Answers on the way to the smallest number of replicas that is enough: doubling, then bisection. The smallest comes last.

    Raises:
        PlanError: `most` replicas are not enough.
    """
    low, high, best = 0, 1, None
    while best is None:
        answer = simulate(question, rows, high)
        yield answer
        if answer.enough:
            best = answer
        elif high >= question.most:
            share = 100 * answer.outcome.met
            raise PlanError(f"{high} replicas are not enough ({share:.1f} % within the limits); raise --most or the limits")
        else:
            low, high = high, min(2 * high, question.most)
    while high - low > 1:
        middle = (low + high) // 2
        answer = simulate(question, rows, middle)
        yield answer
        if answer.enough:
            high, best = middle, answer
        else:
            low = middle
    yield best


def to_json(question: Question, answers: list[Answer]) -> str:
    """Question and answers as JSON."""
    asked = {
        "profile": question.profile.name,
        "slo": asdict(question.slo),
        "goal": question.goal,
        "rate": question.rate,
        "cloud": question.cloud,
    }
    told = [{"replicas": a.replicas, "enough": a.enough, **a.outcome.as_dict()} for a in answers]
    return json.dumps({"simulated": True, "question": asked, "answers": told, "replicas": answers[-1].replicas}, indent=1)
