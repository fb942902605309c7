"""The guard decides again under its own copy of the policy, and cuts what a new copy forbids."""

from __future__ import annotations

import asyncio
import os
import time

import httpx
import msgspec
import pytest

from router.residency import engine_guard
from router.residency import guard as guard_module
from router.residency.engine_guard import EngineGuard
from router.residency.guard import (
    ENV_INCARNATION,
    ENV_KEY,
    ENV_PLACE,
    ENV_POLICY,
    PASS_HEADER,
    STORED,
    GuardKey,
    GuardPolicy,
    Pass,
    Place,
    PolicyCopy,
    StoredCeilings,
    derive_target_key,
    issue_pass,
)
from router.residency.guard_copy import copy_for_guards
from router.residency.resolve import resolve_label
from tests.router.builders import grant_of, make_policy

KEY = derive_target_key(b"s" * 32, "i1")
EU = Place(("eu",), ("eu",), ("baa",))
NOW = 1000.0


def make_guard_policy(**changes):
    values = {
        "epoch": "e1",
        "issued": 1.0,
        "keys": {"clinic": GuardKey("eu/eu/baa"), "office": GuardKey("us/us/", [("eu+us/eu+us/", 900.0, 1100.0)])},
        "tags": {"phi": "eu/eu/baa", "us": "us/us/"},
        "models": {"big": "us/us/"},
    }
    return GuardPolicy(**{**values, **changes})


def make_pass(**changes):
    values = {"request_id": "r", "incarnation": "i1", "epoch": "e", "label_text": "eu+us/eu+us/", "expires": NOW + 60}
    return Pass(**{**values, "key": "clinic", "tags": "", "model": "tiny", **changes})


@pytest.mark.parametrize("changes", [{}, {"tags": "phi"}, {"model": ""}, {"key": "office"}])
def test_it_lets_in_what_its_own_policy_allows(changes):
    assert make_guard_policy().refuses(make_pass(**changes), EU, NOW) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": "unknown"}, "does not know this key"),
        ({"key": ""}, "does not know this key"),
        ({"tags": "us"}, "tags"),
        ({"tags": "phi+us"}, "tags"),
        ({"tags": "phi+nobody-knows"}, "tags"),
        ({"model": "big"}, "tags"),
    ],
)
def test_it_refuses_what_its_own_policy_does_not(changes, why):
    assert why in make_guard_policy().refuses(make_pass(**changes), EU, NOW)


@pytest.mark.parametrize(("now", "inside"), [(899.9, False), (900.0, True), (1099.9, True), (1100.0, False)])
def test_a_relaxation_holds_from_its_begin_to_its_end(now, inside):
    assert (make_guard_policy().refuses(make_pass(key="office"), EU, now) is None) == inside


def test_a_relaxation_opens_what_it_names_and_nothing_else():
    elsewhere = Place(("asia",), ("asia",), ("baa",))
    assert "requests" in make_guard_policy().refuses(make_pass(key="office"), elsewhere, NOW)


def test_the_copy_for_guards_says_what_the_policy_says():
    policy = make_policy()
    copy = copy_for_guards(policy, 5.0)
    grant = grant_of(policy)
    assert (copy.epoch, copy.issued) == (policy.epoch, 5.0)
    assert copy.keys["plain"].ceiling == policy.label_text(grant.ceiling)
    for tag in ("phi", "local", "any", "eu"):
        place = policy.place_of(resolve_label(grant, (tag,), policy))
        both = Place.from_text(copy.keys["plain"].ceiling), Place.from_text(copy.tags[tag])
        assert set(place.process) == set(both[0].process) & set(both[1].process)


def write(path, policy):
    other = path.with_suffix(".new")
    other.write_bytes(msgspec.json.encode(policy))
    other.replace(path)


def test_a_faulty_or_older_copy_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(guard_module, "REREAD_S", 0.0)
    path = tmp_path / "policy.json"
    copy = PolicyCopy(path)
    assert copy.current() is None
    write(path, make_guard_policy(issued=5.0))
    assert copy.current().issued == 5.0
    for faulty in (
        b"",
        b"{",
        msgspec.json.encode({"epoch": "x"}),
        msgspec.json.encode(make_guard_policy(issued=4.0, epoch="old")),
    ):
        path.write_bytes(faulty)
        assert copy.current().epoch == "e1"
    path.unlink()
    assert copy.current().issued == 5.0
    write(path, make_guard_policy(issued=5.0, epoch="e2"))
    assert copy.current().epoch == "e2"


def test_a_copy_is_read_anew_only_now_and_then(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(guard_module.time, "monotonic", lambda: clock[0])
    path = tmp_path / "policy.json"
    write(path, make_guard_policy(epoch="e1"))
    copy = PolicyCopy(path)
    assert copy.current().epoch == "e1"
    write(path, make_guard_policy(epoch="e2"))
    clock[0] += guard_module.REREAD_S - 0.01
    assert copy.current().epoch == "e1"
    clock[0] = 100.0 + guard_module.REREAD_S
    assert copy.current().epoch == "e2"


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(guard_module, "REREAD_S", 0.0)
    path = tmp_path / "policy.json"
    write(path, make_guard_policy())
    copy = PolicyCopy(path)
    first = copy.current()
    assert copy.current() is first
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert copy.current() is not first


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    monkeypatch.setattr(guard_module, "REREAD_S", 0.0)
    monkeypatch.setenv(ENV_KEY, KEY.hex())
    monkeypatch.setenv(ENV_INCARNATION, "i1")
    monkeypatch.setenv(ENV_PLACE, EU.to_text())
    path = tmp_path / "policy.json"
    monkeypatch.setenv(ENV_POLICY, str(path))
    chunks = []

    async def engine(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(6):
            if number == 3 and scope["path"] == "/tightened":
                write(path, make_guard_policy(issued=2.0, keys={"clinic": GuardKey("us/us/")}))
            if number == 3 and scope["path"] == "/relaxed":
                write(path, make_guard_policy(issued=2.0, keys={"clinic": GuardKey("eu+us/eu+us/")}))
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 5})
            chunks.append(number)

    return EngineGuard(engine), path, chunks


def headers_for(path, method="POST", **changes):
    return {PASS_HEADER: issue_pass(KEY, make_pass(expires=time.time() + 30, **changes), method, path)}


async def ask(guard, path, method="POST", headers=None):
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or headers_for(path, method)).items()]
    await guard({"type": "http", "method": method, "path": path, "headers": raw}, None, send)
    return sent


async def test_nobody_enters_before_there_is_a_policy_except_to_read_health(guarded):
    guard, path, chunks = guarded
    sent = await ask(guard, "/v1/completions")
    assert sent[0]["status"] == 403 and b"no policy yet" in sent[1]["body"] and chunks == []
    assert (await ask(guard, "/health", "GET"))[0]["status"] == 200
    write(path, make_guard_policy())
    assert (await ask(guard, "/v1/completions"))[0]["status"] == 200
    assert (await ask(guard, "/v1/completions", headers=headers_for("/v1/completions", tags="us")))[0]["status"] == 403
    assert (await ask(guard, "/health", "GET", headers_for("/health", "GET", key="")))[0]["status"] == 200


async def test_a_running_answer_is_cut_when_a_new_policy_forbids_it_and_only_then(guarded):
    guard, path, chunks = guarded
    write(path, make_guard_policy())
    sent = await ask(guard, "/tightened")
    assert chunks == [0, 1, 2] and sent[-1]["more_body"] is True
    chunks.clear()
    path.unlink()
    guard._copy.policy = None
    write(path, make_guard_policy(issued=1.5))
    await ask(guard, "/relaxed")
    assert chunks == [0, 1, 2, 3, 4, 5]


async def test_an_application_that_raises_in_groups_is_cut_as_well(guarded):
    guard, path, _ = guarded
    write(path, make_guard_policy())
    inner = guard._app

    async def grouped(scope, receive, send):
        try:
            await inner(scope, receive, send)
        except Exception as error:
            raise ExceptionGroup("tasks", [error]) from None

    guard._app = grouped
    assert (await ask(guard, "/tightened"))[-1]["more_body"] is True

    async def broken(scope, receive, send):
        raise ExceptionGroup("tasks", [ValueError()])

    guard._app = broken
    write(path, make_guard_policy(issued=3.0))
    with pytest.raises(ExceptionGroup):
        await ask(guard, "/v1/completions")


async def test_a_pass_that_is_no_text_or_comes_twice_is_refused_over_http(guarded):
    guard, path, chunks = guarded
    write(path, make_guard_policy())
    token = headers_for("/v1/completions")[PASS_HEADER]
    twice = [(PASS_HEADER.encode(), token.encode())] * 2
    for raw in (twice, [], [(PASS_HEADER.encode(), b"\xff\xfe")]):
        sent = []

        async def send(message, sent=sent):
            sent.append(message)

        await guard({"type": "http", "method": "POST", "path": "/v1/completions", "headers": raw}, None, send)
        assert sent[0]["status"] == 403
    assert chunks == []
    transport = httpx.ASGITransport(app=guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        assert (await client.post("/v1/completions", headers={PASS_HEADER: token})).text == "x" * 6


async def test_a_key_that_the_copy_does_not_know_yet_is_waited_for_and_no_longer_than_that(guarded, monkeypatch):
    guard, path, chunks = guarded
    write(path, make_guard_policy())
    headers = headers_for("/v1/completions", key=STORED + "new")
    asking = asyncio.create_task(ask(guard, "/v1/completions", headers=headers))
    await asyncio.sleep(0.12)
    assert not asking.done() and chunks == []
    stored = StoredCeilings([GuardKey("us/us/"), GuardKey("eu/eu/")], {STORED + "new": 1, STORED + "far": 0}, "d1")
    write(path, make_guard_policy(issued=2.0, stored=stored))
    assert (await asking)[0]["status"] == 200 and len(chunks) == 6
    far = await ask(guard, "/v1/completions", headers=headers_for("/v1/completions", key=STORED + "far"))
    assert far[0]["status"] == 403 and len(chunks) == 6
    monkeypatch.setattr(engine_guard, "WAIT_S", 0.1)
    nobody = await ask(guard, "/v1/completions", headers=headers_for("/v1/completions", key=STORED + "nobody"))
    assert nobody[0]["status"] == 403 and b"does not know this key" in nobody[1]["body"] and len(chunks) == 6
    # Whoever has no pass is told so at once.
    monkeypatch.setattr(engine_guard, "WAIT_S", 1e9)
    assert (await ask(guard, "/v1/completions", headers={PASS_HEADER: headers[PASS_HEADER][:-1] + "!"}))[0]["status"] == 403


def test_a_key_of_the_store_has_its_own_ceiling_and_relaxation():
    stored = StoredCeilings([GuardKey("us/us/"), GuardKey("us/us/", [("eu+us/eu+us/", 900.0, 1100.0)])], {"a": 0, "b": 1}, "d")
    policy = make_guard_policy(stored=stored)
    assert policy.refuses(make_pass(key="a"), Place(("us",), ("us",)), NOW) is None
    assert "this key's requests" in policy.refuses(make_pass(key="a"), EU, NOW)
    assert policy.refuses(make_pass(key="b"), EU, NOW) is None and "this key's" in policy.refuses(make_pass(key="b"), EU, 1200.0)
    assert "does not know" in policy.refuses(make_pass(key="c"), EU, NOW)
    assert [policy.knows(key) for key in ("a", "clinic", "c")] == [True, True, False]
