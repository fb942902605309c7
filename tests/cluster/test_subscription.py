"""Events arrive whole and in order, or it is said that they did not."""

import asyncio

import pytest
import zmq.asyncio

from cluster.kv.events import BlockRemoved
from cluster.kv.subscription import Subscription
from tests.cluster.fake_publisher import FakePublisher


def event(number: int) -> list[dict]:
    return [{"type": "BlockRemoved", "block_hashes": [number], "medium": None}]


class Follower:
    def __init__(self, publisher: FakePublisher, replay: bool = True) -> None:
        self.seen: list[int] = []
        self.losses = 0
        self.context = zmq.asyncio.Context()
        self.subscription = Subscription(self.context, publisher.events, publisher.replay if replay else "", self.take, self.lost)
        self.task = asyncio.create_task(self.subscription.run())

    def take(self, batch) -> None:
        for removed in batch.events:
            assert isinstance(removed, BlockRemoved)
            self.seen += removed.block_hashes

    def lost(self) -> None:
        self.losses += 1

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)


async def until(condition, seconds: float = 8.0) -> bool:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.fixture
async def publisher(tmp_path):
    publisher = FakePublisher(tmp_path, buffer=20)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def follower(publisher):
    follower = Follower(publisher)
    yield follower
    await follower.stop()


async def test_what_was_published_before_it_came_is_replayed(publisher):
    for number in range(5):
        await publisher.publish(event(number))
    follower = Follower(publisher)
    assert await until(lambda: follower.seen == [0, 1, 2, 3, 4])
    assert follower.losses == 0 and follower.subscription.first_seen == 0
    await follower.stop()


async def test_a_gap_is_filled_in_order(publisher, follower):
    assert await until(lambda: follower.subscription.proof_age() >= 0)
    for number in range(10):
        await publisher.publish(event(number), drop=number in (3, 4, 7))
    assert await until(lambda: follower.seen == list(range(10)))
    assert follower.losses == 0


async def test_the_last_message_missed_is_found_without_a_further_one(publisher, follower):
    assert await until(lambda: follower.subscription.proof_age() >= 0)
    await publisher.publish(event(0))
    await publisher.publish(event(1), drop=True)
    assert await until(lambda: follower.seen == [0, 1])


async def test_what_the_buffer_has_dropped_is_lost_and_said(publisher):
    for number in range(50):
        await publisher.publish(event(number))
    follower = Follower(publisher)
    assert await until(lambda: follower.seen == list(range(30, 50)))
    assert follower.losses == 1 and follower.subscription.first_seen == 30
    await publisher.publish(event(50))
    assert await until(lambda: follower.seen[-1] == 50)
    assert follower.losses == 1
    await follower.stop()


async def test_silence_proves_nothing_but_the_pulse_does(publisher, follower):
    assert await until(lambda: 0 <= follower.subscription.proof_age() < 0.5)
    publisher.answers = False
    assert await until(lambda: follower.subscription.proof_age() > 2.5)
    publisher.answers = True
    assert await until(lambda: 0 <= follower.subscription.proof_age() < 1.0)


async def test_a_batch_nobody_can_read_is_a_loss(publisher, follower):
    assert await until(lambda: follower.subscription.proof_age() >= 0)
    await publisher._pub.send_multipart([b"", (0).to_bytes(8, "big"), b"\xc1"])
    assert await until(lambda: follower.losses == 1)


async def test_without_a_replay_address_a_gap_is_a_loss(publisher):
    follower = Follower(publisher, replay=False)
    await asyncio.sleep(0.3)
    for number in range(5):
        await publisher.publish(event(number), drop=number == 2)
    assert await until(lambda: follower.seen == [0, 1, 3, 4])
    assert follower.losses == 1 and follower.subscription.proof_age() == -1
    await follower.stop()
