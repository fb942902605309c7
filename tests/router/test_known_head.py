"""A header block that repeats is not parsed again: what the handler sees is the same either way."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from router.wire.bodies import Bodies
from router.wire.direct import DirectRequest
from router.wire.http_server import RelayProtocol
from router.wire.known_head import KnownHead
from router.wire.listening import make_server

PATH = b"/v1/chat/completions"


class Recorder:
    """A handler that notes what it was given, and answers."""

    max_body_bytes = 100
    bodies = Bodies(1000)

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def open(self, request: DirectRequest) -> None:
        if any(name == b"x-refuse" for name, _ in request.headers):
            request.answer(401, b"", b"no")

    def run(self, request: DirectRequest) -> None:
        size = request.too_large
        self.seen.append((request.method, request.path, list(request.headers), request.keep_alive, size, request.take_body()))
        request.answer(200, b"", b"yes")


class Wire(asyncio.Transport):
    """A client's connection without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.said += data

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def converse(pieces: list[bytes], forgetful: bool) -> tuple[list[Any], bytes, bool]:
    """What the handler was given, what the client was told, and whether the connection was closed."""
    recorder, wire = Recorder(), Wire()
    server = make_server(None, direct={PATH: recorder})
    server.config.load()
    protocol = server.config.http_protocol_class(config=server.config, server_state=server.server_state, app_state={})
    assert isinstance(protocol, RelayProtocol)
    protocol.connection_made(wire)
    for piece in pieces:
        if forgetful:
            protocol._known = KnownHead()
        protocol.data_received(piece)
        await asyncio.sleep(0)
    return recorder.seen, wire.said, wire.closing


def head(length: bytes, extra: bytes = b"", name: bytes = b"Content-Length: ") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b%b\r\nX-Last: 1\r\n\r\n" % (PATH, extra, name, length)


def a_request(dice: random.Random) -> bytes:
    body = dice.randbytes(dice.choice((0, 1, 7, 7, 7, 10, 99, 100, 101, 150)))
    if dice.random() < 0.1:
        body = head(b"3") + b"abc"  # a request within a body
    extra = dice.choice(
        (b"", b"", b"", b"", b"x-other: %d\r\n" % dice.randrange(3), b"connection: close\r\n", b"X-Refuse: 1\r\n")
    )
    length = b"%d" % len(body)
    odd = dice.random()
    if odd < 0.04:
        length = dice.choice((b"0" + length, b"+" + length, b" " + length + b" ", length + b"0", b"", b"-1", b"9" * 12, b"0x7"))
    elif odd < 0.08:
        extra += dice.choice(
            (
                b"content-length: 3\r\n",
                b"transfer-encoding: chunked\r\n",
                b"expect: 100-continue\r\n",
                b"upgrade: x\r\n",
                b"a: b\n",
            )
        )
    return head(length, extra, dice.choice((b"Content-Length: ",) * 6 + (b"content-length:", b"Content-Length:\t"))) + body


@pytest.mark.parametrize("seed", range(8))
async def test_a_repeated_block_means_what_it_meant_the_first_time(seed):
    dice = random.Random(seed)
    repeated = 0
    for _ in range(150):
        requests = [a_request(dice) for _ in range(dice.randrange(1, 8))]
        whole = b"".join(requests)
        cuts = sorted(dice.randrange(len(whole)) for _ in range(dice.randrange(4))) if dice.random() < 0.5 else []
        pieces = requests if not cuts else [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        quick, slow = [await converse(list(filter(None, pieces)), forgetful) for forgetful in (False, True)]
        assert quick == slow
        repeated += len(slow[0]) > 2
    assert repeated > 20


async def test_it_is_really_taken_and_only_for_what_is_the_same(monkeypatch):
    matched: list[bool] = []
    plain = KnownHead.match

    def noted(self: KnownHead, data: bytes) -> Any:
        found = plain(self, data)
        matched.append(found is not None)
        return found

    monkeypatch.setattr(KnownHead, "match", noted)
    requests = [head(b"3") + b"abc", head(b"3") + b"xyz", head(b"12") + b"a" * 12, head(b"3") + b"ab", b"c" + head(b"3") + b"abc"]
    seen, said, _ = await converse(requests, forgetful=False)
    assert matched == [True, True, False]  # the fourth is cut short, and what follows it begins in its body
    assert [body for *_, body in seen] == [b"abc", b"xyz", b"a" * 12, b"abc", b"abc"]
    assert [dict(headers)[b"content-length"] for _, _, headers, *_ in seen] == [b"3", b"3", b"12", b"3", b"3"]
    assert said.count(b"HTTP/1.1 200 OK") == 5


async def test_a_client_whose_blocks_differ_each_time_is_not_learnt_for_ever():
    lessons = []
    recorder, wire = Recorder(), Wire()
    server = make_server(None, direct={PATH: recorder})
    server.config.load()
    protocol = server.config.http_protocol_class(config=server.config, server_state=server.server_state, app_state={})
    protocol.connection_made(wire)
    for number in range(20):
        protocol.data_received(head(b"3", b"traceparent: %d\r\n" % number) + b"abc")
        lessons.append(protocol._known._before)
    assert len(recorder.seen) == 20 and len(set(lessons)) == 4
