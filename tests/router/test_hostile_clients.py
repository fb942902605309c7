"""Clients that send what no client should: odd framing, half requests, slow ones. All over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from router.wire.client_head import BadHead, HeadCollector
from router.wire.patience import BODY_S, HEAD_S, KEEP_ALIVE_S, UNREAD_S, Patience, Verdict
from tests.router.builders import digest
from tests.router.conftest import KEY, FrontDoor, open_front_door

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}, indent=1).encode()
CHUNKED = b"transfer-encoding: chunked\r\n"


def head(extra: bytes = b"", length: int | None = len(BODY), key: str = KEY, target: bytes = b"/v1/chat/completions") -> bytes:
    lines = [b"POST %b HTTP/1.1\r\nhost: x\r\n" % target, extra]
    lines += [b"authorization: Bearer %b\r\n" % key.encode()] if key else []
    lines += [b"content-length: %d\r\n" % length] if length is not None else []
    return b"".join((*lines, b"\r\n"))


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


async def converse(door: FrontDoor, *pieces: bytes, wait_s: float = 0.4, first_s: float = 20.0) -> bytes:
    """What the router says to these pieces, each sent on its own, until it is silent for `wait_s`; `<closed>` at the end when it
    closed. It may take `first_s` to begin: on a busy machine the first word comes late, and those after it at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    said = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        while data := await asyncio.wait_for(reader.read(65536), wait_s if said else first_s):
            said += data
        said += b"<closed>"
    except TimeoutError:
        pass
    except ConnectionError:
        said += b"<closed>"
    finally:
        writer.close()
    return said


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


async def test_header_lines_may_come_one_by_one(door):
    whole = head()
    lines = [line + b"\r\n" for line in whole.split(b"\r\n")[:-2]]
    assert status(await converse(door, *lines, b"\r\n" + BODY)) == 200
    assert status(await converse(door, whole[:-1], whole[-1:] + BODY)) == 200
    assert status(await converse(door, b"\r\n" + whole[:-2], whole[-2:-1], whole[-1:], BODY)) == 200


async def test_a_trailer_is_no_header(door):
    tail = b"0\r\nauthorization: Bearer %b\r\n\r\n" % KEY.encode()
    assert status(await converse(door, head(CHUNKED, None, key="") + chunk(BODY) + tail)) == 401
    tail = b"0\r\nx-tidegate-residency: nowhere\r\n\r\n"
    assert status(await converse(door, head(CHUNKED, None) + chunk(BODY) + tail)) == 200


async def test_an_offer_to_upgrade_is_declined_and_the_body_stays_a_body(door):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    assert status(await converse(door, head(offer) + BODY)) == 200
    smuggled = head(length=None).replace(b"POST", b"GET")
    said = await converse(door, head(offer, len(smuggled), key="tg_wrong"), smuggled)
    assert said.count(b"HTTP/1.1") == 1, "what follows the headers is the body, not a second request"
    said = await converse(door, head() + BODY + head(offer) + BODY)
    assert said.count(b"HTTP/1.1 200") <= 1 and said.endswith(b"<closed>")


@pytest.mark.parametrize(
    "request_",
    [
        head().replace(b"HTTP/1.1", b"HTTP/2.0") + BODY,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        head(b"x: a\nb: c\r\n") + BODY,
        head(b"x: %b\r\n" % (b"a" * 30_000)) + BODY,
        head(CHUNKED) + chunk(BODY) + b"0\r\n\r\n",
        head(CHUNKED, None) + b"ffffffffffffffffff\r\n",
        head(b"x-a: b\0c\r\n") + BODY,
        b"CONNECT evil:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_is_not_sound_http_is_refused_and_the_connection_closed(door, request_):
    said = await converse(door, request_)
    assert status(said) == 400 and said.endswith(b"<closed>")
    assert door.engines["a"].requests == []


async def test_nothing_after_a_refused_request_runs(door):
    said = await converse(door, head(b"host: y\r\n") + BODY + head() + BODY)
    assert status(said) == 400 and said.count(b"HTTP/1.1") == 1
    await asyncio.sleep(0.1)
    assert door.engines["a"].requests == []


@pytest.mark.parametrize("flood", [b"0\r\nx: " + b"a" * 4096, b"5;x=" + b"a" * 4096])
async def test_endless_framing_around_a_body_is_cut(door, flood):
    said = await converse(door, head(CHUNKED, None) + chunk(b"{"), flood, *[b"a" * 65536] * 8)
    assert said.endswith(b"<closed>")


async def test_a_body_in_one_byte_chunks_is_understood(door):
    body = b"".join(chunk(bytes([byte])) for byte in BODY + b" " * 20_000)
    assert status(await converse(door, head(CHUNKED, None) + body + b"0\r\n\r\n", wait_s=2)) == 200


async def test_a_refused_expectation_closes_so_that_no_body_can_pass_for_a_request(door):
    said = await converse(door, head(b"expect: 100-continue\r\n", key="tg_wrong"))
    assert status(said) == 401 and b"connection: close" in said and said.endswith(b"<closed>")
    said = await converse(door, head(b"expect: 100-continue\r\n"), BODY)
    assert said.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in said


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/tidegate/v1/explain", b"/tidegate/v1/feedback"])
async def test_nobody_without_a_key_gets_a_body_kept(door, path):
    said = await converse(door, head(key="tg_wrong", target=path), BODY[:10])
    assert status(said) == 401, "the answer comes while the body is still on its way"


async def test_a_keys_own_limit_of_the_body_holds_for_explain_as_well():
    keys = [{"id": "front", "sha256": digest(KEY), "max_body_bytes": 1024}]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        for path in ("/v1/chat/completions", "/tidegate/v1/explain"):
            assert (await door.client.post(path, content=BODY + b" " * 1024)).status_code == 413


@pytest.mark.parametrize("model", ["\ud800", "a" * 5000, "SECRET\0"])
async def test_a_model_that_can_be_no_name_is_not_found_and_not_kept(door, caplog, model):
    for path in ("/v1/chat/completions", "/tidegate/v1/explain"):
        body = json.dumps({"model": model, "messages": []}).encode()
        response = await door.client.post(path, content=body, headers={"x-request-id": "odd-model-1"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert len(response.content) < 300
    assert door.state.receipts.find("odd-model-1") is None and caplog.records == []


async def test_half_a_character_in_a_duplicate_key_or_path_is_answered(door):
    response = await door.client.post("/v1/chat/completions", content=b'{"\\ud800": 1, "\\ud800": 2}')
    assert response.status_code == 400
    assert (await door.client.get("/%ff%ed%a0%80")).status_code == 404


async def test_an_unexpected_error_is_answered_and_logged_without_its_text(door, caplog, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("SECRET PROMPT")

    monkeypatch.setattr("router.app.explain_request", fail)
    with caplog.at_level(logging.WARNING):
        response = await door.client.post("/tidegate/v1/explain", json={"model": "m"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "RuntimeError" in caplog.text and "SECRET" not in caplog.text


async def test_health_may_be_asked_with_head(door):
    assert (await door.client.head("/healthz")).status_code == 200
    assert (await door.client.head("/readyz")).status_code == 200


async def test_slow_and_silent_clients_are_let_go(door, monkeypatch):
    for name in ("HEAD_S", "BODY_S"):
        monkeypatch.setattr(f"router.wire.patience.{name}", 0.3)
    silent, half, body, wrong = await asyncio.gather(
        converse(door, wait_s=4),
        converse(door, head()[:40], wait_s=4),
        converse(door, head(), BODY[:10], wait_s=4),
        converse(door, head(key="tg_wrong"), BODY[:10], wait_s=4),
    )
    assert silent == b"<closed>"
    assert status(half) == status(body) == 408 and half.endswith(b"<closed>") and body.endswith(b"<closed>")
    assert b'"timeout_error"' in half
    assert status(wrong) == 401 and wrong.endswith(b"<closed>")
    assert (await door.chat("hello")).status_code == 200


async def test_waiting_for_an_answer_is_not_being_slow(door, monkeypatch):
    monkeypatch.setattr("router.wire.patience.HEAD_S", 0.2)
    monkeypatch.setattr("router.wire.patience.BODY_S", 0.2)
    stalled = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hang"}]}).encode()
    said = await converse(door, head(length=len(stalled)) + stalled + head()[:30], first_s=2.5)
    assert said == b"", "a pipelined half request waits for the answer before it"


def test_a_head_is_the_same_however_it_is_cut():
    whole = b"\r\nPOST / HTTP/1.1\r\nhost: x\r\nUPGRADE : h2c\r\n\r\nbody\n\r\n\r\nrest"
    expected = HeadCollector().collect(whole)
    assert expected is not None and b"upgrade :" not in expected.lower().replace(b"x-declined-upgrade :", b"")
    for i in range(1, whole.index(b"\r\n\r\nbody") + 3):
        collector = HeadCollector()
        assert collector.collect(whole[:i]) is None
        assert collector.collect(whole[i:]) == expected
    for bad in (b"GET / HTTP/1.1\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\ry\r\n\r\n", b"\0", b"GET /" + b"a" * 99_999):
        with pytest.raises(BadHead):
            HeadCollector().collect(bad)


def test_patience_has_its_limits():
    idle = {"held_back": False, "answering": False}
    patience = Patience(0.0)
    assert patience.judge(HEAD_S, 0, **idle) is Verdict.KEEP
    assert patience.judge(HEAD_S + 1, 0, **idle) is Verdict.TOO_SLOW
    patience.expect_body(20.0)
    patience.got_body(10 * 1024)
    assert patience.judge(20 + BODY_S + 9, 0, **idle) is Verdict.KEEP
    assert patience.judge(20 + BODY_S + 11, 0, **idle) is Verdict.TOO_SLOW
    assert patience.judge(20 + BODY_S + 11, 0, held_back=True, answering=True) is Verdict.KEEP
    patience.settle()
    assert patience.judge(20 + BODY_S + 11, 0, **idle) is Verdict.KEEP
    assert patience.judge(20 + BODY_S + 11 + KEEP_ALIVE_S - 1, 0, **idle) is Verdict.KEEP
    assert patience.judge(20 + BODY_S + 11 + KEEP_ALIVE_S + 1, 0, **idle) is Verdict.IDLE
    busy = {"held_back": False, "answering": True}
    assert patience.judge(1000.0, 0, **busy) is Verdict.KEEP
    assert patience.judge(1001.0, 500, **busy) is Verdict.KEEP
    assert patience.judge(1050.0, 400, **busy) is Verdict.KEEP, "it reads, if slowly"
    assert patience.judge(1051.0 + UNREAD_S, 400, **busy) is Verdict.UNREAD


def test_a_client_that_asks_again_and_again_is_not_idle_though_every_answer_was_quick():
    patience = Patience(0.0)
    for second in range(1, 3 * round(KEEP_ALIVE_S)):
        patience.expect_body(second - 0.5)
        patience.settle()  # answered before anybody looks
        assert patience.judge(float(second), 0, held_back=False, answering=False) is Verdict.KEEP
    assert patience.judge(second + KEEP_ALIVE_S + 1, 0, held_back=False, answering=False) is Verdict.IDLE


async def test_an_http_1_1_request_names_its_host(door):
    unnamed = head().replace(b"host: x\r\n", b"")
    assert status(await converse(door, unnamed + BODY)) == 400
    assert status(await converse(door, unnamed.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)) == 200
    assert door.engines["a"].requests[1:] == []
