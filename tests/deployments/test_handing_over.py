"""When a router that is replaced stops listening."""

from __future__ import annotations

import asyncio

import pytest

from deployments import handing_over
from deployments.handing_over import await_successor


class Cluster:
    """What Serve would say, one answer a round; the last one from then on."""

    def __init__(self, others: list[list[str]], kept: list[bool]) -> None:
        self.others, self.kept = others, kept
        self.asked = 0

    async def find_others(self) -> list[str]:
        self.asked += 1
        return self.others.pop(0) if len(self.others) > 1 else self.others[0]

    async def is_kept(self) -> bool:
        return self.kept.pop(0) if len(self.kept) > 1 else self.kept[0]

    async def wait(self, limit_s: float = 60.0) -> None:
        await asyncio.wait_for(await_successor(self.find_others, self.is_kept, "here", limit_s), 30)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(handing_over, "PERIOD_S", 0.0)


async def test_it_goes_on_until_another_listens_on_its_own_node():
    cluster = Cluster([[], ["elsewhere"], ["elsewhere", "here"]], [True])
    await cluster.wait()
    assert cluster.asked == 3


async def test_it_waits_for_nobody_where_the_application_is_deleted():
    cluster = Cluster([[]], [True, False])
    await cluster.wait()
    assert cluster.asked == 1


async def test_a_successor_that_never_comes_is_waited_for_so_long_and_no_longer():
    cluster = Cluster([["elsewhere"]], [True])
    await cluster.wait(0.05)
    assert cluster.asked


async def test_a_cluster_that_cannot_be_asked_expects_nobody(monkeypatch):
    def fail():
        raise ConnectionError("the controller is gone")

    monkeypatch.setattr(handing_over.serve, "status", fail)
    assert not await handing_over.is_kept("tidegate")
