"""How long after `tidegate keys revoke` a key is still good anywhere."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from _dataplane.client import Connection, request
from tidegate.home import find_home
from tidegate.stored_keys import KeyStore

from _replicas.engine import CountingEngine
from _replicas.processes import Setting, several_routers

_PAUSE_S = 0.005
_LONGEST_S = 30.0


@dataclass
class Revocations:
    """Seconds from the return of the revocation until the last request that any replica still took, per round; streams that
    were at work under the key, and how long they went on."""

    last_taken_s: list[float] = field(default_factory=list)
    streams_cut_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def measure_revocation(setting: Setting, rounds: int) -> Revocations:
    """Make keys, use each at every replica without pause, revoke it, and see when the last replica stops taking it."""
    engine, found = CountingEngine(), Revocations()
    await engine.start()
    try:
        async with several_routers(setting, engine.port) as routers:
            os.environ["TIDEGATE_HOME"] = str(routers.home)
            store = KeyStore(find_home(), Path(routers.config))
            for _ in range(rounds):
                await _one_round(store, f"key-{secrets.token_hex(4)}", routers.ports, found)
    finally:
        engine.stop()
    return found


async def _one_round(store: KeyStore, name: str, ports: list[int], found: Revocations) -> None:
    key = await asyncio.to_thread(store.create, name, {})
    revoked: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(4 * _LONGEST_S), asyncio.TaskGroup() as group:
        taken = [asyncio.Event() for _ in ports]
        users = [group.create_task(_use(port, key, seen, revoked, found)) for port, seen in zip(ports, taken, strict=True)]
        for seen in taken:
            await seen.wait()
        streams = [group.create_task(_stream(port, key)) for port in ports]
        await asyncio.sleep(0.2)  # so that the streams are at work; when it is too short, fewer of them are measured
        await asyncio.to_thread(store.revoke, name)
        revoked.set_result(time.monotonic())
    found.last_taken_s.append(max(0.0, max(user.result() for user in users) - revoked.result()))
    found.streams_cut_s += [end - revoked.result() for stream in streams if (end := stream.result()) is not None]


async def _use(port: int, key: str, taken: asyncio.Event, revoked: asyncio.Future[float], found: Revocations) -> float:
    """Ask until the key is refused, after it was taken once; returns when the last request that was taken was sent."""
    connection, last, number = Connection(port), 0.0, 0
    try:
        while True:
            sent = time.monotonic()
            answer = await connection.ask(request({"model": "m", "messages": []}, key, f"use-{port}-{number:08d}"))
            number += 1
            if answer.status == 200:
                last = sent
                taken.set()
            elif answer.status != 401:
                found.problems.append(f"status {answer.status}")
                return last
            elif taken.is_set():
                if not revoked.done() and not last:
                    found.problems.append("refused before it was revoked")
                return last
            if revoked.done() and time.monotonic() - revoked.result() > _LONGEST_S:
                found.problems.append(f"still taken after {_LONGEST_S:.0f} s")
                return last
            await asyncio.sleep(_PAUSE_S)
    finally:
        connection.close()


async def _stream(port: int, key: str) -> float | None:
    """Read a stream that never ends by itself; returns when it ended, None when it never began."""
    body = {"model": "m", "messages": [], "stream": True}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(body, key, f"stream-{port}-{time.monotonic_ns()}", extra=b"connection: close\r\n"))
        head = await reader.readline()
        if b" 200 " not in head:
            return None
        async with asyncio.timeout(_LONGEST_S):
            while await reader.read(65536):
                pass
        return time.monotonic()
    finally:
        writer.close()
