"""Limits on what a client may hold or send: connections, requests on one of them, bodies, the Host header. Over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from router.config import ConfigError
from router.identity.networks import compile_networks
from router.wire.bodies import Bodies
from router.wire.client_head import HeaderBlock, framing_problem
from router.wire.sources import Sources, TooManyConnections
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY, OTHER_KEY, open_front_door
from tests.router.test_hostile_clients import BODY, converse, head, status

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Client:
    """One connection that stays open until `close`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> tuple[bytes, bytes]:
        """The head and the body of the answer to `data`."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()
        found = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        lines = dict(line.split(b": ", 1) for line in found.lower().split(b"\r\n")[1:] if line)
        return found, await asyncio.wait_for(self.reader.readexactly(int(lines[b"content-length"])), 10)

    async def ended(self) -> bool:
        """Whether the router has closed it."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(1), 10) == b""
        return True


async def connect(port: int, preface: bytes = b"") -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    client.writer.write(preface)
    return client


async def refused(port: int, preface: bytes = b"") -> bool:
    """Whether one more connection is refused; then with an error in the envelope."""
    client = await connect(port, preface)
    try:
        found, body = await client.ask(b"" if preface else HEALTH)
        assert found.startswith(b"HTTP/1.1 429") and json.loads(body)["error"]["code"] == "rate_limited"
        return await client.ended()
    finally:
        client.writer.close()


async def test_a_source_may_have_so_many_connections_and_no_more():
    async with open_front_door({"a": "eu"}, listen={"connections_per_source": 3}) as door:
        await door.client.aclose()  # its own connection counts as well
        held = []
        while len(held) < 3:
            client = await connect(door.port)
            if (await client.ask(HEALTH))[0].startswith(b"HTTP/1.1 200"):
                held.append(client)
        assert await refused(door.port) and await refused(door.port)
        assert (await held[0].ask(HEALTH))[0].startswith(b"HTTP/1.1 200"), "those that are there stay"
        held.pop().writer.close()
        for _ in range(100):
            client = await connect(door.port)
            found, _ = await client.ask(HEALTH)
            if found.startswith(b"HTTP/1.1 200"):
                break
        assert found.startswith(b"HTTP/1.1 200")
        for one in (*held, client):
            one.writer.close()


async def test_behind_a_balancer_the_source_is_the_client_it_names():
    listen = {"connections_per_source": 1, "trusted_proxies": ["127.0.0.1"], "proxy_protocol": True}
    async with open_front_door({"a": "eu"}, listen=listen) as door:
        first, second = b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n", b"PROXY TCP4 192.0.2.2 127.0.0.1 1 2\r\n"
        held = [await connect(door.port, first), await connect(door.port, second)]
        unknown = [await connect(door.port, b"PROXY UNKNOWN\r\n") for _ in range(3)]
        for client in (*held, *unknown):
            assert (await client.ask(HEALTH))[0].startswith(b"HTTP/1.1 200")
        assert await refused(door.port, first) and await refused(door.port, second)
        for client in (*held, *unknown):
            client.writer.close()


async def test_a_trusted_proxy_speaks_for_many_and_is_not_bounded():
    listen = {"connections_per_source": 1, "trusted_proxies": ["127.0.0.1"]}
    async with open_front_door({"a": "eu"}, listen=listen) as door:
        clients = [await connect(door.port) for _ in range(5)]
        for client in clients:
            assert (await client.ask(HEALTH))[0].startswith(b"HTTP/1.1 200")
            client.writer.close()


def test_an_ipv6_source_is_its_network_and_nothing_is_kept_of_who_left():
    sources = Sources(2, compile_networks(["10.0.0.0/8"]))
    entered = [sources.enter("2001:db8:1:2::1"), sources.enter("2001:db8:1:2:ffff::9%eth0"), sources.enter("2001:db8:1:3::1")]
    with pytest.raises(TooManyConnections):
        sources.enter("2001:db8:1:2::7")
    assert sources.enter("10.1.2.3") is None and sources.enter("no address") is None
    entered += [sources.enter("192.0.2.1"), sources.enter("::ffff:192.0.2.1")]
    with pytest.raises(TooManyConnections):
        sources.enter("192.0.2.1")
    for source in entered:
        assert source is not None
        sources.leave(source)
    assert not sources._open


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("data", [HEALTH, head() + BODY], ids=["asgi", "direct"])
async def test_the_last_request_of_a_connection_is_answered_and_told_so(most, data):
    async with open_front_door({"a": "eu"}, listen={"requests_per_connection": most}) as door:
        client = await connect(door.port)
        for number in range(1, most + 1):
            found, _ = await client.ask(data)
            assert found.startswith(b"HTTP/1.1 200")
            assert (b"connection: close" in found.lower()) == (number == most)
        assert await client.ended()
        client.writer.close()


async def test_a_key_may_have_a_smaller_bound_on_bodies_than_everybody():
    keys = [{"id": "front", "sha256": digest(KEY)}, {"id": "other", "sha256": digest(OTHER_KEY), "max_body_bytes": 1024}]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello" + " " * 2000}]}).encode()
        for key, body, expected in ((KEY, large, 200), (OTHER_KEY, large, 413), (OTHER_KEY, BODY, 200)):
            assert status(await converse(door, head(length=len(body), key=key) + body)) == expected
            chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            said = await converse(door, head(b"transfer-encoding: chunked\r\n", None, key=key) + chunked)
            assert status(said) == expected
            twice = head(length=len(BODY), key=key) + BODY + head(length=len(body), key=key) + body
            said = await converse(door, twice)  # the second waits behind the first, its body is there before its key is known
            assert said.count(b"HTTP/1.1 %d" % expected) == (2 if expected == 200 else 1)
        assert b"larger than 1024 bytes" in await converse(door, head(length=len(large), key=OTHER_KEY) + large)
        for key, expected in (("tg_nobody", 401), (OTHER_KEY, 413)):  # without waiting for a body that nobody would keep
            announced = head(length=4_000_000, key=key).replace(b"/v1/chat/completions", b"/tidegate/v1/explain")
            assert status(await converse(door, announced)) == expected
        explained = await door.client.post("/tidegate/v1/explain", content=large)
        assert explained.status_code == 200


ROOM = {"max_body_bytes": 800_000, "max_held_bytes": 1_000_000}
LARGE = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello" + " " * 600_000}]}).encode()
"""More than comes in one read."""


async def test_large_bodies_of_all_clients_together_are_bounded():
    async with open_front_door({"a": "eu"}, **ROOM) as door:
        held, whole = door.state.bodies, head(length=len(LARGE)) + LARGE
        slow, next_one = await connect(door.port), await connect(door.port)
        slow.writer.write(whole[:-1])
        while held.held < len(LARGE) - 1:
            await asyncio.sleep(0)
        refused, error = await next_one.ask(whole)
        assert refused.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in refused.lower()
        assert json.loads(error)["error"]["code"] == "overloaded" and b"hello" not in error
        assert held.held == len(LARGE) - 1  # what was refused does not count
        assert (await slow.ask(LARGE[-1:]))[0].startswith(b"HTTP/1.1 200") and held.held == 0
        found, _ = await next_one.ask(whole)  # the connection lives, and now there is room
        assert found.startswith(b"HTTP/1.1 200") and held.held == 0
        for client in (slow, next_one):
            client.writer.close()


async def test_one_keys_bodies_leave_room_for_those_of_others():
    async with open_front_door({"a": "eu"}, **{**ROOM, "max_held_bytes": 4_000_000}) as door:
        held, whole = door.state.bodies, head(length=len(LARGE)) + LARGE
        slow, other = [await connect(door.port) for _ in range(4)], await connect(door.port)
        for client in slow:
            client.writer.write(whole[:-1])
        while held.held < 4 * (len(LARGE) - 1):
            await asyncio.sleep(0)
        refused, _ = await other.ask(whole)
        assert refused.startswith(b"HTTP/1.1 503")
        for _ in range(2):
            found, _ = await other.ask(head(length=len(LARGE), key=OTHER_KEY) + LARGE)
            assert found.startswith(b"HTTP/1.1 200")
        for client in (*slow, other):
            client.writer.close()
        while held.held:
            await asyncio.sleep(0)


def test_a_key_alone_has_three_quarters_and_many_never_the_last_of_it():
    bodies = Bodies(1000)
    assert bodies.take("alone", 0, 1000), "one body needs but fit"
    bodies.give_back("alone", 1000)
    taken = {key: sum(bodies.take(key, 0, 10) for _ in range(100)) * 10 for key in "abcde"}
    assert taken == {"a": 750, "b": 180, "c": 50, "d": 10, "e": 10} and bodies.held == sum(taken.values())
    for key, size in taken.items():
        bodies.give_back(key, size)
    assert bodies.held == 0 and bodies.take("b", 0, 700)


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/tidegate/v1/explain"])
async def test_a_body_that_is_given_up_counts_no_longer(path):
    async with open_front_door({"a": "eu"}, **ROOM) as door:
        client = await connect(door.port)
        client.writer.write((head(length=len(LARGE)).replace(b"/v1/chat/completions", path) + LARGE)[:-1])
        while not door.state.bodies.held:
            await asyncio.sleep(0)
        client.writer.close()
        while door.state.bodies.held:
            await asyncio.sleep(0)


def test_one_request_must_fit_into_what_all_may_hold():
    with pytest.raises(ConfigError, match="max_held_bytes: it is below"):
        make_config(max_body_bytes=4096, max_held_bytes=2048)


def test_a_keys_bound_cannot_be_above_everybodys():
    with pytest.raises(ConfigError, match="above the top-level"):
        make_config(keys=[{"id": "k", "sha256": digest(KEY), "max_body_bytes": 2048}], max_body_bytes=1024)


@pytest.mark.parametrize(
    ("host", "sound"),
    [
        (b"", True),
        (b"api.example.com", True),
        (b"my_service.ns.svc:8000", True),
        (b"127.0.0.1:80", True),
        (b"[::1]:8000", True),
        (b"[v1.fe80::a+en1]", True),
        (b"xn--bcher-kva.example:", True),
        (b"a b", False),
        (b"a,b", True),
        (b"a/b", False),
        (b"user@evil", False),
        (b"a?b", False),
        (b"a#b", False),
        (b"[::1", False),
        (b"::1", False),
        (b"a:80:80", False),
        (b"a:port", False),
        (b"a:123456", False),
        ("bücher.example".encode(), False),
        (b'"a"', False),
        (b"a\\b", False),
        (b"<script>", False),
    ],
)
def test_a_host_is_a_host_with_a_port(host, sound):
    headers = HeaderBlock([(b"host", host)])
    headers.seal()
    for version in ("1.0", "1.1"):
        assert (framing_problem(version, headers, b"/") is None) == sound


async def test_over_the_wire_a_host_that_is_none_is_refused(door):
    said = await converse(door, head().replace(b"host: x", b"host: user@x/path") + BODY)
    assert status(said) == 400 and said.endswith(b"<closed>") and b"Host" in said
    assert door.engines["a"].requests == []
