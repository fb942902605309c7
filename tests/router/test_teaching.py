"""What feedback has taught is shared between routers over one store, counted once, and there again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router import teaching
from router.complexity.feedback import Rating
from router.complexity.learning import Learning, LearningSettings
from router.store.database import Database, StoreError
from router.store.feedback import FeedbackTable, Lesson
from tests.router.builders import digest
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.talking_engine import TalkingEngine
from tests.router.test_leases import postgresql, url

__all__ = ["postgresql", "url"]
SLOW = {"implicit": False, "explore": 0.0}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """Exchanges happen when a test says so, and at the end of a router."""
    monkeypatch.setattr(teaching, "PERIOD_S", 3600.0)


@contextlib.asynccontextmanager
async def router(store: Path, **more: Any) -> AsyncIterator[FrontDoor]:
    engines = {"small": TalkingEngine(("fine", -0.1)), "large": TalkingEngine(("fine", -0.1))}
    section = {"share": 0.0, "pin_conversations": False, "feedback": {"enabled": True, **SLOW}}
    keys = [{"id": "front", "sha256": digest(KEY), "tenant": "clinic"}]
    tiers, zones = {"small": "small", "large": "large"}, {"small": "eu", "large": "eu"}
    more = {"engines": engines, "tiers": tiers, "complexity": section, "keys": keys, "store": store, **more}
    async with open_front_door(zones, **more) as door:
        await door.router._teaching.exchange()
        yield door


async def rate(door: FrontDoor, model: str, score: float, count: int) -> str:
    """So many requests that a model answered, rated."""
    learning = door.state.complexity.learning
    learning.settings = LearningSettings(explore=0.5, implicit=False)
    learning._dice = lambda: {"m-small": 0.1, "m-large": 0.4}[model]
    for _ in range(count):
        response = await door.chat("What is new?", model="auto")
        assert response.headers["x-tidegate-model"] == model
        said = {"request_id": response.headers["x-request-id"], "score": score}
        assert (await door.client.post("/tidegate/v1/feedback", json=said)).json()["learned"]
    learning.settings = LearningSettings(explore=0.0, implicit=False)
    return said["request_id"]


async def chosen(door: FrontDoor) -> str:
    return (await door.chat("What is new?", model="auto")).headers["x-tidegate-model"]


async def test_two_routers_learn_together_what_neither_knows_alone_and_a_third_begins_with_it(tmp_path):
    async with router(tmp_path) as one, router(tmp_path) as other:
        await rate(one, "m-small", 0.0, 60)
        await rate(other, "m-large", 1.0, 60)
        assert await chosen(one) == await chosen(other) == "m-small", "each knows one side of it"
        for door in (one, other, one):
            await door.router._teaching.exchange()
        assert await chosen(one) == await chosen(other) == "m-large"
        sums = one.state.complexity.learning.describe()
        assert sums == other.state.complexity.learning.describe() and list(sums) == ["clinic"]
        assert await rate(one, "m-small", 0.0, 5)
        # `other` has ended; `one` has not told of its last five yet, and does so when it ends.
    async with router(tmp_path) as third:
        assert await chosen(third) == "m-large"
        ((small, large),) = third.state.complexity.learning.describe()["clinic"].values()
        assert (small["weight"], large["weight"]) == (65.0, 60.0)
        assert not any(b"new" in path.read_bytes() for path in tmp_path.rglob("*.db*") if path.is_file())


async def test_other_models_in_a_tier_begin_with_nothing(tmp_path):
    async with router(tmp_path) as door:
        await rate(door, "m-small", 0.0, 3)
    async with router(tmp_path, tiers={"small": "large", "large": "small"}) as door:
        assert door.state.complexity.learning.describe() == {}
    async with router(tmp_path) as door:
        assert door.state.complexity.learning.describe() != {}


async def test_a_store_that_fails_costs_nothing_but_the_exchange(tmp_path, monkeypatch, caplog):
    async with router(tmp_path) as door:
        await rate(door, "m-small", 0.0, 2)
        table = door.router._teaching._table
        with monkeypatch.context() as broken:

            def fail(*_: object) -> None:
                raise StoreError("the store is away")

            broken.setattr(table, "exchange", fail)
            await door.router._teaching.exchange()
            await door.router._teaching.exchange()
            assert await chosen(door) == "m-small" and caplog.text.count("the store is away") == 1
        learning = door.state.complexity.learning
        assert len(learning.fresh) == 2
        await door.router._teaching.exchange()
        assert not learning.fresh and learning.describe()["clinic"]


async def test_the_exchange_runs_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "PERIOD_S", 0.01)
    async with router(tmp_path) as one, router(tmp_path) as other:
        await rate(one, "m-small", 0.0, 3)
        async with asyncio.timeout(20):
            while not other.state.complexity.learning.describe():
                await asyncio.sleep(0.01)


def test_a_rating_that_reaches_two_routers_counts_once(url):
    database = Database(url)
    try:
        table = FeedbackTable(database)
        lesson = Lesson("slot-1", "t", "law:2", 1, 1.0, 0.5)
        version, sums = table.exchange("s", [lesson, lesson], -1, 1.0)
        assert sums == (("t", "law:2", 1, 1.0, 0.5),)
        again, sums = table.exchange("s", [lesson], version, 2.0)
        assert again > version and sums == (("t", "law:2", 1, 1.0, 0.5),)
        _, sums = table.exchange("s", [Lesson("slot-2", "t", "law:2", 1, 0.5, 0.25)], again, 3.0)
        assert sums == (("t", "law:2", 1, 1.5, 0.75),)
        assert table.exchange("s", [], again + 1, 4.0) == (again + 1, None)
        assert table.exchange("other", [], -1, 5.0)[1] == ()
    finally:
        database.close()


def test_what_was_not_told_yet_counts_on_top_of_what_is_heard():
    learning = Learning(LearningSettings(0.0), setting="s")
    learning.shared = True
    for number in range(3):
        learning.rate("t", "law:2", 1, 2, Rating(f"r{number}", 1.0, 1.0))
    learning.hear([("t", "law:2", 1, 10.0, 4.0)], told=2)
    (arms,) = learning.describe()["t"].values()
    assert arms[1] == {"weight": 11.0, "total": 5.0} and arms[0] == {"weight": 0.0, "total": 0.0}
    assert "r2" not in repr(learning.fresh[0].slot) and len(learning.fresh) == 1


async def test_an_error_nobody_foresaw_does_not_end_the_exchange(monkeypatch):
    """Nobody watches the task: the second exchange must come although the first failed."""
    monkeypatch.setattr(teaching, "PERIOD_S", 0.0)
    again = asyncio.Event()

    class Broken:
        shared = True
        setting = "s"
        tries = 0

        @property
        def fresh(self) -> list[object]:
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("unforeseen")
            again.set()
            return []

        def hear(self, sums: object, told: int) -> None:
            """Nothing to learn here."""

    class Table:
        def exchange(self, *_: object) -> tuple[int, None]:
            return 0, None

    state = SimpleNamespace(complexity=SimpleNamespace(learning=Broken()))
    task = asyncio.create_task(teaching.Teaching(state, Table()).run())
    try:
        await asyncio.wait_for(again.wait(), 10)
    finally:
        task.cancel()
