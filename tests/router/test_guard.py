"""The pass opens exactly one door, for one request line, for a while; the guard lets nobody else in."""

from __future__ import annotations

import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.residency.engine_guard import EngineGuard
from router.residency.guard import (
    ENV_INCARNATION,
    ENV_KEY,
    ENV_PLACE,
    PASS_HEADER,
    PASS_LIFETIME_S,
    Pass,
    PassRefused,
    Place,
    _mac,
    check_pass,
    derive_target_key,
    issue_pass,
)

SECRET = b"s" * 32
EU = Place(("eu",), ("eu",), ("baa",))
NOW = 1000.0


def make_pass(**changes):
    values = {"request_id": "r1", "incarnation": "i1", "epoch": "e1", "label_text": "eu+us/eu/baa", "expires": NOW + 60}
    return Pass(**{**values, **changes})


def enter(token, *, key=None, method="POST", path="/v1/chat/completions", incarnation="i1", place=EU, now=NOW):
    return check_pass(key or derive_target_key(SECRET, "i1"), token, method, path, incarnation, place, now)


def issued(**changes):
    return issue_pass(derive_target_key(SECRET, "i1"), make_pass(**changes), "POST", "/v1/chat/completions")


def test_a_good_pass_opens_its_door():
    assert enter(issued()) == make_pass()


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "GET"},
        {"path": "/metrics"},
        {"incarnation": "i2"},
        {"key": derive_target_key(SECRET, "i2")},
        {"key": derive_target_key(b"t" * 32, "i1")},
        {"now": NOW + 60},
        {"now": NOW - 61},
        {"place": Place(("cn",), ("eu",), ("baa",))},
        {"place": Place(("eu",), ("us",), ("baa",))},
        {"place": Place(("eu",), ("eu",), ())},
        {"place": Place((), (), ("baa",))},
    ],
)
def test_it_opens_no_other(wrong):
    with pytest.raises(PassRefused):
        enter(issued(), **wrong)


@given(st.text(max_size=200))
def test_no_text_is_a_pass(text):
    with pytest.raises(PassRefused):
        enter(text)


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_no_change_to_a_pass_survives(position, character):
    token = issued()
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    if changed != token:
        with pytest.raises(PassRefused):
            enter(changed)


@pytest.mark.parametrize("field", ["request_id", "incarnation", "epoch", "label_text", "key", "tags", "model"])
@pytest.mark.parametrize("bad", ["a|b", "a\nb", "a\rb"])
def test_fields_cannot_smuggle_a_separator(field, bad):
    with pytest.raises(ValueError, match="separator"):
        issued(**{field: bad})


@pytest.mark.parametrize("mac", ["", "é" * 64, "\ud800", "0" * 64])
def test_a_signature_of_another_alphabet_is_refused_and_nothing_worse(mac):
    with pytest.raises(PassRefused):
        enter(f"{issued().rpartition('|')[0]}|{mac}")


def test_a_pass_of_another_version_is_refused_though_signed():
    body = "1" + issued().rpartition("|")[0][1:]
    with pytest.raises(PassRefused, match="malformed"):
        enter(f"{body}|{_mac(derive_target_key(SECRET, 'i1'), body, 'POST', '/v1/chat/completions')}")


def test_a_pass_is_good_for_two_lifetimes_and_no_longer():
    assert enter(issued(expires=NOW + 2 * PASS_LIFETIME_S))
    for expires in (NOW + 2 * PASS_LIFETIME_S + 0.001, NOW):
        with pytest.raises(PassRefused, match="expired"):
            enter(issued(expires=expires))


def test_places_survive_the_way_through_text():
    for place in (EU, Place((), ()), Place(("a", "b"), ("c",), ("d", "e"))):
        assert Place.from_text(place.to_text()) == place


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv(ENV_KEY, derive_target_key(SECRET, "i1").hex())
    monkeypatch.setenv(ENV_INCARNATION, "i1")
    monkeypatch.setenv(ENV_PLACE, EU.to_text())
    entered = []

    async def engine(scope, receive, send):
        entered.append(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    return EngineGuard(engine), entered


async def test_the_middleware_lets_in_only_the_holder_of_a_pass(guarded):
    guard, entered = guarded
    transport = httpx.ASGITransport(app=guard)
    token = issued(expires=time.time() + 30)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        for method, path in [
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("POST", "/invocations"),
            ("POST", "/tokenize"),
            ("GET", "/"),
        ]:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pass_refused")
        twice = await client.post("/v1/chat/completions", headers=[(PASS_HEADER, token), (PASS_HEADER, token)])
        assert twice.status_code == 403
        assert entered == []
        assert (await client.post("/v1/chat/completions", headers={PASS_HEADER: token})).text == "in"
        assert (await client.post("/v1/completions", headers={PASS_HEADER: token})).status_code == 403
    assert entered == ["http"]


async def test_websockets_are_refused_and_lifespan_passes(guarded):
    guard, entered = guarded
    sent = []

    async def send(message):
        sent.append(message)

    await guard({"type": "websocket", "headers": []}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}] and entered == []
    await guard({"type": "lifespan"}, None, send)
    assert entered == ["lifespan"]


@pytest.mark.parametrize("missing", [ENV_KEY, ENV_INCARNATION, ENV_PLACE])
def test_a_guard_without_its_settings_does_not_start(guarded, monkeypatch, missing):
    monkeypatch.delenv(missing)
    with pytest.raises(RuntimeError):
        EngineGuard(lambda *_: None)


def test_a_guard_with_a_short_key_does_not_start(guarded, monkeypatch):
    monkeypatch.setenv(ENV_KEY, "aabb")
    with pytest.raises(RuntimeError, match="32 bytes"):
        EngineGuard(lambda *_: None)
