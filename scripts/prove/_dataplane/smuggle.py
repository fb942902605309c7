"""Requests whose framing is ambiguous, or that carry a second one: each is refused once, and nothing extra reaches an engine."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from _dataplane import routers
from _dataplane.client import ask, request
from _dataplane.decoder import decode
from _dataplane.scripted import ScriptedEngine

BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
SMUGGLED = b"smuggled-request"


@dataclass
class Item:
    """One attempt. `statuses`: what the answers may be, in order; `engine`: how many requests may reach the engine."""

    name: str
    data: bytes
    statuses: tuple[tuple[int, ...], ...] = ((400,),)
    engine: int = 0


@dataclass
class Result:
    """What came of the corpus."""

    count: int = 0
    refused: int = 0
    violations: list[str] = field(default_factory=list)


def _head(*lines: bytes, line: bytes = b"POST /v1/chat/completions HTTP/1.1", rid: bytes = b"prove-request") -> bytes:
    base = [line, b"host: x", b"authorization: Bearer " + routers.KEY.encode(), b"x-request-id: " + rid]
    return b"\r\n".join([*base, *lines]) + b"\r\n\r\n"


def _chunked(*pieces: bytes) -> bytes:
    return _head(b"transfer-encoding: chunked") + b"".join(pieces)


def _second(rid: bytes = SMUGGLED) -> bytes:
    return _head(b"content-length: %d" % len(BODY), rid=rid) + BODY


def _lengths() -> list[Item]:
    size = b"content-length: %d" % len(BODY)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    pairs = {
        "cl+te": (size, b"transfer-encoding: chunked"),
        "te+cl": (b"transfer-encoding: chunked", size),
        "cl0+te": (b"content-length: 0", b"transfer-encoding: chunked"),
        "cl.cl same": (size, size),
        "cl.cl other": (size, b"content-length: 0"),
        "cl list": (b"content-length: %d, %d" % (len(BODY), len(BODY)),),
        "cl plus": (b"content-length: +%d" % len(BODY),),
        "cl minus": (b"content-length: -1",),
        "cl hex": (b"content-length: 0x38",),
        "cl empty": (b"content-length: ",),
        "cl underscore": (b"content-length: 5_6",),
        "cl huge": (b"content-length: " + b"9" * 40,),
        "cl space colon": (b"content-length : %d" % len(BODY),),
        "cl tab colon": (b"content-length\t: %d" % len(BODY),),
        "te space colon": (b"transfer-encoding : chunked",),
        "te.te": (b"transfer-encoding: chunked", b"transfer-encoding: identity"),
        "te.te same": (b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        "te list": (b"transfer-encoding: gzip, chunked",),
        "te reversed": (b"transfer-encoding: chunked, gzip",),
        "te identity": (b"transfer-encoding: identity",),
        "te x": (b"transfer-encoding: xchunked",),
        "te quoted": (b'transfer-encoding: "chunked"',),
        "te vtab": (b"transfer-encoding: \x0bchunked",),
        "te nul": (b"transfer-encoding: chunked\x00",),
        "te fold": (b"transfer-encoding:\r\n chunked",),
        "fold": (b"x-a: b\r\n c", size),
        "fold te": (b"x-a: b\r\n transfer-encoding: chunked", size),
        "bare cr": (b"x-a: b\rtransfer-encoding: chunked", size),
        "bare lf": (b"x-a: b\ntransfer-encoding: chunked", size),
        "lf lf": (b"x-a: b\n\nGET /healthz HTTP/1.1", size),
        "nul in name": (b"x\x00y: a", size),
        "nul in value": (b"x-y: a\x00b", size),
        "no colon": (b"nonsense", size),
        "empty name": (b": x", size),
        "leading space": (b" host: y", size),
        "two hosts": (b"host: y", size),
        "high byte name": (b"x-\xff: a", size),
    }  # fmt: skip
    return [Item(name, _head(*lines) + (chunks if "te" in name else BODY) + _second()) for name, lines in pairs.items()]


def _chunks() -> list[Item]:
    size = b"%x" % len(BODY)
    tricks = {
        "size 0x": b"0x" + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size plus": b"+" + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size minus": b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size space": size + b" \r\n" + BODY + b"\r\n0\r\n\r\n",
        "size leading space": b" " + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size empty": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size overflow": b"1" + b"0" * 16 + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
        "size lf": size + b"\n" + BODY + b"\r\n0\r\n\r\n",
        "end lf": size + b"\r\n" + BODY + b"\n0\r\n\r\n",
        "end missing": size + b"\r\n" + BODY + b"0\r\n\r\n",
        "end other": size + b"\r\n" + BODY + b"XX0\r\n\r\n",
        "ext lf": size + b";\n" + BODY + b"\r\n0\r\n\r\n",
        "ext cr": size + b";a\rb\r\n" + BODY + b"\r\n0\r\n\r\n",
        "last lf": size + b"\r\n" + BODY + b"\r\n0\n\n",
        "trailer lf": size + b"\r\n" + BODY + b"\r\n0\r\nx: y\n\r\n",
        "trailer cl": size + b"\r\n" + BODY + b"\r\n0\r\ncontent-length: 3\r\n\r\n",
        "trailer te": size + b"\r\n" + BODY + b"\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
        "trailer fold": size + b"\r\n" + BODY + b"\r\n0\r\nx: y\r\n z\r\n\r\n",
    }
    return [Item(f"chunk {name}", _chunked(data) + _second()) for name, data in tricks.items()]


def _lines() -> list[Item]:
    size = b"content-length: %d" % len(BODY)
    lines = {
        "no version": b"POST /v1/chat/completions",
        "http/0.9": b"POST /v1/chat/completions HTTP/0.9",
        "http/1.2": b"POST /v1/chat/completions HTTP/1.2",
        "http/2.0": b"POST /v1/chat/completions HTTP/2.0",
        "lower http": b"POST /v1/chat/completions http/1.1",
        "two spaces": b"POST  /v1/chat/completions  HTTP/1.1",
        "tab": b"POST\t/v1/chat/completions HTTP/1.1",
        "space in target": b"POST /v1/chat completions HTTP/1.1",
        "lower method": b"post /v1/chat/completions HTTP/1.1",
        "unknown method": b"SMUGGLE /v1/chat/completions HTTP/1.1",
        "nul in target": b"POST /v1/chat\x00/completions HTTP/1.1",
        "high byte in target": b"POST /v1/\xff HTTP/1.1",
        "line lf": b"POST /v1/chat/completions HTTP/1.1\nx: y",
        "connect": b"CONNECT 10.0.0.1:80 HTTP/1.1",
        "connect path": b"CONNECT /v1/chat/completions HTTP/1.1",
        "pri": b"PRI * HTTP/2.0",
        "long target": b"POST /" + b"a" * 9000 + b" HTTP/1.1",
        "source": b"SOURCE /v1/chat/completions ICE/1.0",
    }  # fmt: skip
    refused = [Item(f"line {name}", _head(size, line=line) + BODY + _second()) for name, line in lines.items()]
    for item in refused:
        if item.name in ("line connect path", "line source"):
            item.statuses = ((400, 405),)
        elif item.name == "line two spaces":  # A liberty RFC 9112, section 3, allows: the framing stays unambiguous.
            item.statuses, item.engine = ((200, 400), (200, 400)), 2
    return refused


def _pipelines() -> list[Item]:
    good = _second(b"prove-first")
    bad = {
        "cl+te": _head(b"content-length: 3", b"transfer-encoding: chunked") + b"0\r\n\r\n",
        "garbage": b"\x00\x01\x02\r\n\r\n",
        "bare lf": b"POST /v1/chat/completions HTTP/1.1\nhost: x\n\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        "two hosts": _head(b"host: y", b"content-length: 0"),
    }
    items = [Item(f"good then {name}", good + data, ((200,), (400,)), 1) for name, data in bad.items()]
    items += [Item(f"bad {name} then good", data + _second(), ((400,),), 0) for name, data in bad.items()]
    absolute = _head(b"content-length: %d" % len(BODY), line=b"POST http://evil.invalid/v1/chat/completions HTTP/1.1") + BODY
    items += [
        Item("absolute form", absolute, ((200, 400),), 1),
        Item("leading line ends", b"\r\n\r\n" + good, ((200, 400),), 1),
        Item("body longer than length", _head(b"content-length: 2") + b"{}" + BODY, ((400,), (400,)), 0),
        Item("head flood", _head(*[b"x-%d: y" % i for i in range(3000)], b"content-length: 0")),
        Item("leading line ends, bare lf", b"\r\n\r\nPOST /v1/chat/completions HTTP/1.1\nhost: x\n\n" + _second()),
        Item("upgrade", _head(b"connection: upgrade", b"upgrade: h2c", b"content-length: %d" % len(BODY)) + BODY + _second(),
             ((200, 400), (200,)), 2),
        Item("close then second", _head(b"connection: close", b"content-length: %d" % len(BODY)) + BODY + _second(),
             ((200,),), 1),
    ]  # fmt: skip
    return items


def corpus() -> list[Item]:
    """Every attempt."""
    return [*_lengths(), *_chunks(), *_lines(), *_pipelines()]


async def _exchange(port: int, data: bytes, step: int) -> bytes:
    """Send, in pieces of `step` bytes (0: at once), and read until the router closes or stays silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen = b""
    sender = asyncio.create_task(_send(writer, data, step))
    with contextlib.suppress(TimeoutError):
        with contextlib.suppress(ConnectionResetError):  # what we went on sending came after its end: closed as well
            while more := await asyncio.wait_for(reader.read(1 << 16), _patience(seen)):
                seen += more
        seen += b"<closed>"
    await sender
    writer.transport.abort()
    return seen


def _patience(seen: bytes) -> float:
    """Seconds to wait for more: long for the end of a connection that was refused, which must come, short for what need not."""
    if not seen:
        return 2.0
    return 10.0 if b"HTTP/1.1 400 " in seen else 0.5


async def _send(writer: asyncio.StreamWriter, data: bytes, step: int) -> None:
    """A router that refuses stops reading: what could not be sent then does not matter."""
    with contextlib.suppress(ConnectionError):
        for piece in [data] if not step else [data[i : i + step] for i in range(0, len(data), step)]:
            if writer.transport.is_closing():
                return
            writer.write(piece)
            await writer.drain()
            if step:
                await asyncio.sleep(0.002)


def _judge(item: Item, seen: bytes, reached: dict[str, int], how: str, result: Result) -> None:
    closed, rest, got = seen.endswith(b"<closed>"), seen.removesuffix(b"<closed>"), []
    while rest:
        answer = decode(rest)
        if answer.wrong or not answer.complete:
            result.violations.append(f"{item.name} ({how}): not an answer: {rest[:80]!r}")
            return
        got.append(answer.status)
        rest = answer.rest
    result.refused += 400 in got
    fits = 0 < len(got) <= len(item.statuses) and all(s in may for s, may in zip(got, item.statuses, strict=False))
    must = [may for may in item.statuses if may == (400,)]
    if not fits or (must and item.statuses[-1] == (400,) and got[-1] != 400):
        result.violations.append(f"{item.name} ({how}): answers {got}, wanted {item.statuses}")
    if got and got[-1] == 400 and must and not closed:
        result.violations.append(f"{item.name} ({how}): refused and left open")
    if sum(reached.values()) > item.engine or any(count > 1 for count in reached.values()):
        result.violations.append(f"{item.name} ({how}): the engine got {reached}")
    if item.engine < 2 and item.name != "upgrade" and SMUGGLED.decode() in reached:
        result.violations.append(f"{item.name} ({how}): the smuggled request reached the engine")


async def attack(router: routers.Router, engine: ScriptedEngine, steps: tuple[int, ...] = (0, 7)) -> Result:
    """Send the whole corpus, at once and in small pieces, one after the other."""
    result = Result()
    for step in steps:
        for item in corpus():
            if step and len(item.data) > 5000:
                continue
            engine.seen.clear()
            seen = await _exchange(router.port, item.data, step)
            result.count += 1
            _judge(item, seen, dict(engine.seen), f"pieces of {step}" if step else "at once", result)
            if engine.odd:
                result.violations.append(f"{item.name}: the engine got {engine.odd.pop()!r}")
    good = await ask(router.port, request({"model": "m", "messages": []}, routers.KEY, "prove-afterwards"))
    if good.status != 200:
        result.violations.append(f"a good request afterwards got {good.status}")
    if await router.inflight():
        result.violations.append("the books do not return to 0")
    return result


async def run(*, apart: bool = True, steps: tuple[int, ...] = (0, 7)) -> Result:
    """The corpus against a router process (`apart`) or one in this process."""
    engine = ScriptedEngine()
    await engine.start()
    open_router = routers.outside if apart else routers.inside
    try:
        async with open_router(routers.make_config({"t": (engine.port, "m")})) as router:
            return await attack(router, engine, steps)
    finally:
        await engine.stop()
