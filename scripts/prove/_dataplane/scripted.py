"""A simulated engine that sends exactly the bytes a case prescribes, found by the request's id."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable

from _dataplane.mutate import Case, base_json

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.I)
_ID = re.compile(rb"\r\nx-request-id: ([^\r\n]+)\r\n", re.I)


DEFAULT = Case("valid", base_json(random.Random(0)), [])


class ScriptedEngine:
    """Listens on a port of its own; `cases` maps request ids to what they get."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.again: dict[str, Case] = {}
        """What a request gets when it comes a second time; without an entry, the same again."""
        self.seen: Counter[str] = Counter()
        self.bodies: dict[str, bytes] = {}
        self.odd: list[bytes] = []
        """Requests that are not framed the way the router frames them."""
        self.on_lost: Callable[[str], None] | None = None
        self.connections: set[_Served] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Served(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and what is open."""
        assert self._server is not None
        self._server.close()
        for served in list(self.connections):
            served.transport.abort()


class _Served(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._buffer = b""
        self._current = ""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.connections.discard(self)
        if self._engine.on_lost is not None and self._current:
            self._engine.on_lost(self._current)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length, name = _LENGTH.search(head + b"\r\n"), _ID.search(head + b"\r\n")
        if length is None or name is None or not head.startswith(b"POST /v1/") or b"transfer-encoding" in head.lower():
            self._engine.odd.append(self._buffer[:200])
            self.transport.abort()
            return
        size = int(length[1])
        if len(rest) < size:
            return
        if len(rest) > size:
            self._engine.odd.append(rest[size : size + 200])
        self._buffer = rest[size:]
        self._current = name[1].decode()
        self._engine.seen[self._current] += 1
        self._engine.bodies[self._current] = rest[:size]
        again = self._engine.seen[self._current] > 1 and self._current in self._engine.again
        cases = self._engine.again if again else self._engine.cases
        case = cases.get(self._current) or DEFAULT
        self._task = asyncio.get_running_loop().create_task(self._play(case))

    async def _play(self, case: Case) -> None:
        for i, piece in enumerate(case.pieces()):
            if i:
                for _ in range(3):
                    await asyncio.sleep(0)
            if self.transport.is_closing():
                return
            self.transport.write(piece)
        for _ in range(2):
            await asyncio.sleep(0)
        self._current = ""
        if case.ending == "reset":
            raw: socket.socket = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif case.ending == "close":
            self.transport.close()
