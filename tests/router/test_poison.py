"""A request under which engines die costs two of them, and is not sent again and again; those beside it lose nothing by that."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router import poison
from router.poison import BASE_REFUSED_S, MAX_REFUSED_S, MOST_LOSSES, PoisonBook
from router.wire.errors import ApiError
from router.wire.exchange import CLOSED, Ending
from tests.router.conftest import FrontDoor, open_front_door
from tests.router.hostile_model import ENGINE_ERROR, Manner
from tests.router.simulated_engine import STREAM_HEAD, answer, chunk, event
from tests.router.test_continuation import CHAT, body_of
from tests.router.test_hostile_streams import ask, hostile

ZONES = dict.fromkeys("abcde", "eu")
DEAD = b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","code":500}}'


def asked(door: FrontDoor) -> int:
    return sum(len(engine.requests) for engine in door.engines.values())


async def test_two_engines_are_risked_for_a_request_and_one_for_the_same_again(caplog):
    caplog.set_level(logging.WARNING, "tidegate.router")
    async with open_front_door(ZONES) as door:
        seen: list[Any] = []
        for stream in (False, True):
            for text in ("die-before", "hello"):
                answers = [await door.chat(text, stream=stream, seed=stream) for _ in range(4)]
                attempts = [len(door.receipt(response)["attempts"]) for response in answers]
                seen.append((attempts, {response.status_code for response in answers}))
        kills, whole = ([2, 1, 0, 0], {502}), ([1] * 4, {200})
        assert seen[0] == kills and seen[1] == whole and seen[2] == kills
        assert [record.getMessage().partition(": ")[2] for record in caplog.records if "died" in record.getMessage()] == [
            "an engine died under it, as 2 before; the same body is refused for 60 s"
        ] * 2
        assert "die-before" not in caplog.text


async def test_a_kept_connection_that_breaks_and_is_refused_counts_too():
    async with open_front_door(ZONES) as door:
        for _ in range(20):
            await asyncio.gather(*(door.chat("hello") for _ in range(10)))
            if all(engine.requests for engine in door.engines.values()):
                break

        def dying(engine: Any) -> Any:
            async def die(*_: Any) -> bool:
                await engine.stop()
                return False

            return die

        for engine in door.engines.values():
            engine._die = dying(engine)
        before = asked(door)
        response = await door.chat("die")
        assert response.status_code == 502 and asked(door) - before == 2
        assert len(door.receipt(response)["attempts"]) == 2


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [("500 Internal Server Error", b"{}", [2, 2]), ("500 Internal Server Error", DEAD, [2, 1]), ("503 Full", b"{}", [3])],
)
async def test_a_500_may_be_a_death_and_a_503_is_none(status, body, expected):
    async def behave(*ends: asyncio.StreamWriter) -> bool:
        ends[1].write(answer(body, status))
        return True

    async with open_front_door(ZONES) as door:
        for engine in door.engines.values():
            engine._hello = behave
        for count in expected:
            before = asked(door)
            assert (await door.chat("hello")).status_code in (502, 503)
            assert asked(door) - before == count


@pytest.mark.parametrize("tokens", [0, 1])
async def test_an_engine_that_says_that_it_died_is_dead(tokens):
    async def behave(*ends: asyncio.StreamWriter) -> bool:
        said = [*(event(i) for i in range(tokens)), ENGINE_ERROR + b"\n\n", b"data: [DONE]\n\n"]
        ends[1].write(STREAM_HEAD + b"".join(map(chunk, said)) + b"0\r\n\r\n")
        return True

    async with open_front_door(ZONES) as door:
        for engine in door.engines.values():
            engine._stream = behave
        for _ in range(5):
            response = await door.chat("stream", stream=True)
            assert b"upstream_error" in response.content
        assert asked(door) == 3


async def test_a_stream_that_goes_on_dying_is_carried_on_three_times():
    async with hostile(count=6) as (door, manners):
        manners[:] = [Manner(end="abort", at=3, seed=i) for i in range(6)]
        read, receipt = await ask(door, CHAT, body_of(CHAT))
        assert read.error and not read.dones and len(receipt["attempts"]) == 4
        manners[:] = []


async def test_an_engine_that_dies_behind_the_last_token_did_not_die_under_it():
    async with hostile(count=2) as (door, manners):
        whole, _ = await ask(door, CHAT, body_of(CHAT))
        events = whole.raw.count("data: ")
        for _ in range(5):
            manners[:] = [Manner(end="abort", at=events - 1)]
            read, receipt = await ask(door, CHAT, body_of(CHAT))
            assert read.text == whole.text and read.done
            assert [attempt["ending"] for attempt in receipt["attempts"]] == ["broken_after"]
        assert not door.state.poison.lengths


def a_request(text: bytes = b"{}", tenant: str = "t") -> Any:
    key = SimpleNamespace(id="k", tenant=tenant)
    attempt = SimpleNamespace(incarnation="", first_byte=0.0, started=0.0, ended=1.0)
    facts, receipt = SimpleNamespace(key=key), SimpleNamespace(attempts=[attempt])
    return SimpleNamespace(body=text, path=CHAT, facts=facts, receipt=receipt, losses=0, request_id="r")


BROKEN = cast(
    Any, SimpleNamespace(connection=object(), sent=True, failure=CLOSED, events=None, status=0, resent=False, forwarding=False)
)
ANSWERED = cast(Any, SimpleNamespace(status=200))


def die(book: PoisonBook, engine: str, now: float, text: bytes = b"{}", tenant: str = "t") -> Any:
    request = a_request(text, tenant)
    request.receipt.attempts[0].incarnation = engine
    book.ended(request, BROKEN, Ending.BROKEN_BEFORE, now)
    return request


def refused(book: PoisonBook, now: float, text: bytes = b"{}", tenant: str = "t") -> bool:
    try:
        book.check(a_request(text, tenant), now)
    except ApiError as error:
        assert (error.status, error.code) == (502, "upstream_error")
        return True
    return False


def test_what_goes_on_killing_is_refused_for_longer_each_time():
    book, now = PoisonBook(), 1000.0
    for engine in "abc":
        assert not refused(book, now)
        die(book, engine, now)
    expected = BASE_REFUSED_S
    for engine in range(12):
        assert refused(book, now) and refused(book, now + expected - 0.1)
        now += expected + 0.1
        request = a_request()
        book.check(request, now)
        assert request.losses == MOST_LOSSES // 2
        die(book, f"engine {engine}", now)
        expected = min(MAX_REFUSED_S, expected * 2)
    assert not refused(book, now, b"[]") and not refused(book, now, tenant="other")
    assert not refused(book, now + 3601)


def test_a_server_that_is_started_again_under_its_old_name_is_another_engine():
    book = PoisonBook()
    for now in (0.0, 1.0, 1.5, 1.9):
        die(book, "a", now)
    assert not refused(book, 2.0)
    die(book, "a", 2.5)
    assert refused(book, 2.5)


def test_one_death_under_many_of_the_same_is_one_and_an_answer_clears_it():
    book = PoisonBook()
    for _ in range(50):
        die(book, "a", 0.0)
    die(book, "b", 0.0)
    assert not refused(book, 0.0)
    book.ended(a_request(), ANSWERED, Ending.COMPLETE, 1.0)
    request = die(book, "c", 2.0)
    assert request.losses == MOST_LOSSES // 2 and not refused(book, 2.0)
    book.check(again := a_request(), 2.0)
    assert again.losses == 0


def test_the_book_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(poison, "_KEPT", 10)
    book = PoisonBook()
    for i in range(30):
        for engine in "abc":
            die(book, engine, 0.0, b"%d" % i)
    assert [refused(book, 0.0, b"%d" % i) for i in range(30)] == [False] * 20 + [True] * 10
    for i in range(30):
        book.ended(a_request(b"%d" % i), ANSWERED, Ending.COMPLETE, 1.0)
    assert not any(refused(book, 1.0, b"%d" % i) for i in range(30))
    assert not book._deaths and not book.lengths
