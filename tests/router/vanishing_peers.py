"""Run in a process of its own: peers that vanish without a word, in a network that nobody else is in.

Prints one line of JSON: seconds until each was noticed. Exit status 77: this machine lets nobody have a network of their own.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import socket
import struct
import sys
import time
from pathlib import Path

from router.placement.targets import Address
from router.wire.exchange import Exchange
from router.wire.pool import Pool
from router.wire.tls import TlsContexts
from tests.router.conftest import KEY, open_front_door
from tests.router.simulated_engine import STREAM_HEAD, SimulatedEngine, chunk, event

AWAY = "10.9.9.1"
CLONE_NEWNET, SIOCSIFADDR, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8916, 0x8914, 1


def link(name: str, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), IFF_UP if up else 0))


def add_address(name: str, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        packed = struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, SIOCSIFADDR, packed)


class Endless(SimulatedEngine):
    """One whose `endless` answer goes on until somebody is tired of it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, float] = {}

    async def _endless(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD)
        gone = asyncio.ensure_future(reader.read(1))
        while not gone.done():
            writer.write(chunk(event(0)))
            await asyncio.sleep(0.05)
        self.left["streaming"] = time.monotonic()
        return False

    async def _silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.read(1)
        self.left["waiting"] = time.monotonic()
        return False


class Nobody:
    """A client and a handler; only the end counts."""

    gone = False
    ended = 0.0

    def listen(self, _listener: object) -> None:
        """Nobody there."""

    def finishes(self) -> bool:
        return False

    def on_end(self, _exchange: Exchange, _ending: object) -> None:
        self.ended = time.monotonic()


async def ask(port: int, wish: str) -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection(AWAY, port)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": wish}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    reader.kept = writer
    return reader


async def main() -> dict[str, float]:
    engine, nobody = Endless(), Nobody()

    async def mute(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with open_front_door({"a": "eu"}, engines={"a": engine}, listen={"host": "0.0.0.0"}) as door:
        streaming, waiting = await ask(door.port, "endless"), await ask(door.port, "silent")
        server = await asyncio.start_server(mute, "0.0.0.0", 0)
        pool = Pool(1.0, TlsContexts(Path()))
        exchange = Exchange(nobody, nobody, b"GET / HTTP/1.1\r\n\r\n", pool.now(), 300.0, 120.0)
        pool.send("i", Address(AWAY, server.sockets[0].getsockname()[1]), exchange)
        assert await streaming.read(10)
        while not (exchange.sent and len(engine.requests) == 2):
            await asyncio.sleep(0.02)
        link("lo:1", up=False)
        began = time.monotonic()
        while time.monotonic() < began + 40 and not (nobody.ended and len(engine.left) == 2):
            await asyncio.sleep(0.05)
        pool.close()
        server.close()
        waiting.kept.close()
    return {name: round(at - began, 1) for name, at in {**engine.left, "target": nobody.ended}.items()}


if __name__ == "__main__":
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        sys.exit(77)
    link("lo", up=True)
    add_address("lo:1", AWAY)
    print(json.dumps(asyncio.run(main())))
