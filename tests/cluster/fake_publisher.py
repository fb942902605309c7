"""vLLM's publisher of KV events as far as a subscriber can see it: PUB, a bounded replay buffer behind a ROUTER."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec
import zmq
import zmq.asyncio

END = (-1).to_bytes(8, "big", signed=True)


class FakePublisher:
    """Use from inside a loop: `start`, `publish`, `stop`."""

    def __init__(self, folder, buffer: int = 100, suffix: str = "") -> None:
        self.events, self.replay = f"ipc://{folder}/events{suffix}", f"ipc://{folder}/replay{suffix}"
        self._context = zmq.asyncio.Context()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self._next = 0
        self.answers = True

    async def start(self) -> None:
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._pub.bind(self.events)
        self._router.bind(self.replay)
        self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def publish(self, events: list[dict[str, Any]], *, drop: bool = False, rank: int = 0) -> None:
        """One batch; with `drop` subscribers miss it and have to ask for it."""
        payload = msgspec.msgpack.encode([0.0, events, rank])
        number, self._next = self._next, self._next + 1
        self._buffer.append((number, payload))
        if not drop:
            await self._pub.send_multipart([b"", number.to_bytes(8, "big"), payload])

    async def _serve(self) -> None:
        while True:
            client, _, start = await self._router.recv_multipart()
            if not self.answers:
                continue
            for number, payload in list(self._buffer):
                if number >= int.from_bytes(start, "big"):
                    await self._router.send_multipart([client, b"", b"", number.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, b"", b"", END, b""])
