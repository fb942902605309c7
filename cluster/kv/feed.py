"""The agent's port: routers come with a pass, get the whole table, then every change and a beat each second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from router.placement.kv_messages import BEAT_S, CHUNKS_PER_FRAME, KV_PATH, Beat, Chunks, Hello, encode_frame, pack_hashes
from router.residency.guard import PassRefused, Place, check_pass

FLUSH_S = 0.05
_LONGEST_PASS = 4096
_PASS_S = 5.0
_BACKLOG = 32 * 1024 * 1024
"""Bytes a router may be behind; then it is cut off and starts anew, because the agent's memory is not its to fill."""
_MOST_ROUTERS = 256


class Feed:
    """Serves the table of one engine.

    Args:
        key: the guard's key of this incarnation.
        incarnation: the engine's incarnation.
        place: where it stands; a pass whose label does not admit it opens nothing.
        hello: makes the first message.
        held: every chunk in the table.
        changes: what changed since it was last asked.
        beat: the state of this moment.
    """

    def __init__(
        self,
        key: bytes,
        incarnation: str,
        place: Place,
        hello: Callable[[], Hello],
        held: Callable[[], list[int]],
        changes: Callable[[], Chunks | None],
        beat: Callable[[], Beat],
    ) -> None:
        self._key = key
        self._incarnation = incarnation
        self._place = place
        self._hello = hello
        self._held = held
        self._changes = changes
        self._beat = beat
        self._routers: set[asyncio.StreamWriter] = set()

    async def run(self, server: asyncio.Server) -> None:
        """Send changes and beats until cancelled; `server` must have been made with `enter` as its callback."""
        due = time.monotonic()
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self.flush()
                if time.monotonic() >= due:
                    due = time.monotonic() + BEAT_S
                    self._send(encode_frame(self._beat()))
        finally:
            server.close()
            for router in list(self._routers):
                router.close()

    def flush(self) -> None:
        """Tell every router what changed."""
        changes = self._changes()
        if changes is not None:
            self._send(encode_frame(changes))

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One router's connection, from its pass to its end."""
        try:
            if len(self._routers) >= _MOST_ROUTERS or not await self._may_enter(reader):
                return
            self.flush()  # so that the changes that follow the snapshot are the ones that came after it
            self._greet(writer)
            self._routers.add(writer)
            await writer.drain()
            while await reader.read(1024):
                pass
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._routers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _may_enter(self, reader: asyncio.StreamReader) -> bool:
        try:
            line = await asyncio.wait_for(reader.readline(), _PASS_S)
            token = line[:_LONGEST_PASS].decode("ascii").strip()
            check_pass(self._key, token, "GET", KV_PATH, self._incarnation, self._place, time.time())
        except (TimeoutError, ValueError, PassRefused):
            return False
        return True

    def _greet(self, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_frame(self._hello()))
        held = self._held()
        writer.write(encode_frame(Chunks(pack_hashes(held[:CHUNKS_PER_FRAME]), reset=True)))
        for start in range(CHUNKS_PER_FRAME, len(held), CHUNKS_PER_FRAME):
            writer.write(encode_frame(Chunks(pack_hashes(held[start : start + CHUNKS_PER_FRAME]))))
        writer.write(encode_frame(self._beat()))

    def _send(self, frame: bytes) -> None:
        for router in list(self._routers):
            if router.transport.get_write_buffer_size() > _BACKLOG:
                self._routers.discard(router)
                router.transport.abort()
            else:
                router.write(frame)
