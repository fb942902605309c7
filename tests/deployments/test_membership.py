"""What a router knows of engines whose replicas answer, hang, come and go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from ray.exceptions import RayActorError, RayTaskError

from cluster.reports import ReplicaFacts, encode_report
from deployments import membership
from deployments.asking import ask_all
from deployments.membership import GuardPolicies, Membership
from router.placement.targets import Report
from router.policy_source import compile_loaded
from router.residency.guard import NONE_STORED, Place
from tests.router.builders import make_config


class Replica:
    """One that answers at once, hangs, or fails."""

    def __init__(self, answer: object) -> None:
        self.answer, self.hangs = answer, False

    async def get_async(self) -> object:
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Handle:
    """Stands for a deployment's handle, with Ray's interface."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas, self.told = list(replicas), list[str]()
        self.policy_takers = self.replicas

    def broadcast(self, method: str, *_: object) -> Handle:
        self.told.append(method)
        return self

    async def _fetch_replica_results_async(self) -> list[Replica]:
        return self.policy_takers if self.told[-1] == "take_policy" else self.replicas


async def test_one_that_hangs_keeps_no_answer_of_another_back():
    hung = Replica(b"never")
    hung.hangs = True
    answers = await ask_all(Handle(Replica(b"one"), hung, Replica(ValueError("no"))), "describe", timeout_s=0.05)  # type: ignore[arg-type]
    assert answers[0] == b"one"
    assert [type(answer) for answer in answers] == [bytes, TimeoutError, ValueError]


class World:
    """Two engines of one deployment and the router's view of them."""

    def __init__(self) -> None:
        loaded = compile_loaded(make_config(), "", Path())
        guards = GuardPolicies(loaded, time.time(), NONE_STORED)
        self.stamp = guards.stamp
        self.engines = [Replica(encode_report(self._facts(name, guards.stamp))) for name in ("a", "b")]
        self.handle = Handle(*self.engines)
        self.reports: list[Report] = []
        handles: Any = [self.handle]
        self.membership = Membership(loaded.config, loaded.policy, handles, None, self._take, guards)

    def _take(self, reports: Any) -> None:
        self.reports = list(reports)

    @staticmethod
    def _facts(name: str, stamp: str) -> ReplicaFacts:
        return ReplicaFacts(name, name, "eu", Place(("eu",), ("eu",)), "127.0.0.1", 1, "m", "chat", 1024, 4, None, policy=stamp)

    def set_clock(self, ahead_s: float) -> None:
        """Have the first engine's clock be so far ahead of the router's."""
        facts = replace(self._facts("a", self.stamp), said_at=time.time() + ahead_s)
        self.engines[0].answer = encode_report(facts)

    async def names(self) -> list[str]:
        await self.membership.refresh()
        return [report.target.incarnation for report in self.reports if report.target.incarnation in "ab"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(membership, "_ANSWER_S", 0.02)
    return World()


async def test_one_that_hangs_goes_after_a_while_and_the_others_stay(world):
    assert await world.names() == ["a", "b"]
    world.engines[0].hangs = True
    for _ in range(membership._FORGET_AFTER - 1):
        assert await world.names() == ["a", "b"], "a pause is no reason to drop it"
    assert [await world.names() for _ in range(3)] == [["b"]] * 3
    world.engines[0].hangs = False
    assert await world.names() == ["a", "b"]


async def test_a_router_that_starts_while_one_hangs_knows_the_others(world):
    world.engines[0].hangs = True
    assert await world.names() == ["b"]


async def test_what_serve_no_longer_runs_goes_at_once(world):
    assert await world.names() == ["a", "b"]
    world.handle.replicas.pop()
    assert await world.names() == ["a"]


@pytest.mark.parametrize("ahead_s", [600.0, -600.0])
async def test_one_whose_guard_refuses_every_pass_because_of_its_clock_is_sent_nothing_and_named_once(world, caplog, ahead_s):
    world.set_clock(ahead_s)
    assert [await world.names() for _ in range(3)] == [["b"]] * 3
    assert [record.getMessage().count(f"{ahead_s:+.0f} s") for record in caplog.records] == [1]
    world.set_clock(ahead_s / 20)
    assert await world.names() == ["a", "b"]
    world.set_clock(ahead_s)
    assert await world.names() == ["b"] and len(caplog.records) == 2


async def test_an_engine_that_cannot_write_its_policy_is_sent_nothing_and_the_log_says_why(world, caplog):
    def fail(number: int, text: str) -> None:
        failure = RayTaskError("take_policy", "a traceback", OSError(number, text)).as_instanceof_cause()
        world.handle.policy_takers = [Replica(failure), Replica(b"taken")]

    world.engines[0].answer = encode_report(replace(World._facts("a", world.stamp), policy=""))
    fail(28, "No space left on device")
    assert [await world.names() for _ in range(3)] == [["b"]] * 3
    fail(30, "Read-only file system")
    await world.names()
    told = [record.getMessage() for record in caplog.records]
    assert ["No space left" in text for text in told] == [True, False] and "Read-only" in told[1]
    assert all(text.startswith("tidegate: of a, ") and "traceback" not in text for text in told)
    world.handle.policy_takers = [Replica(RayActorError()), Replica(b"taken")]
    await world.names()
    assert len(caplog.records) == 2, "one that has just died is no news"
