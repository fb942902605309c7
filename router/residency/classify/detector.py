"""The seam for a detector in a process of its own (Presidio, GLiNER, a model): a unix socket, one JSON message each way.

A message is its length (4 bytes, big-endian) and that many bytes of JSON. The request is `{"text": ...}`; the answer
`{"findings": [{"kind", "start", "end", "confidence"}]}`, positions in code points. A detector that is slow, dead or talks nonsense
makes the answer *unknown*, which callers treat as the strictest one.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from router.residency.classify.kinds import Finding, Kind, Scan

MAX_MESSAGE = 4 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Detector(Protocol):
    """Whatever can look for sensitive values in a text."""

    async def detect(self, text: str) -> Scan:
        """Findings in `text`; never raises: what cannot be answered is `Scan(unknown=...)`."""
        ...


class _Request(msgspec.Struct):
    text: str


class Seen(msgspec.Struct):
    """One finding as a detector writes it; a kind that is none of `Kind` becomes `other`."""

    kind: str
    start: int
    end: int
    confidence: float = 1.0


class _Answer(msgspec.Struct):
    findings: list[Seen]


class SocketDetector:
    """A detector behind a unix socket.

    Args:
        path: the socket's path.
        timeout_s: seconds a text may take, connecting included.
        min_confidence: below it a finding counts for nothing.
    """

    __slots__ = ("_minimum", "_path", "_timeout_s")

    def __init__(self, path: str, timeout_s: float, min_confidence: float = 0.5) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._minimum = min_confidence

    async def detect(self, text: str) -> Scan:
        """See `Detector`."""
        try:
            answer = await asyncio.wait_for(self._ask(text), self._timeout_s)
        except TimeoutError:
            return Scan(unknown="timeout")
        except (OSError, EOFError, msgspec.MsgspecError, ValueError):
            return Scan(unknown="timeout")
        known = {kind.value for kind in Kind}
        found = (
            Finding(Kind(seen.kind) if seen.kind in known else Kind.OTHER, seen.start, seen.end, seen.confidence, "detector")
            for seen in answer.findings
            if seen.confidence >= self._minimum and 0 <= seen.start < seen.end <= len(text)
        )
        return Scan(tuple(found))

    async def _ask(self, text: str) -> _Answer:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            # A lone surrogate cannot be written as UTF-8; one character stays one character.
            payload = msgspec.json.encode(_Request(text.encode("utf-8", "replace").decode()))
            writer.write(_LENGTH.pack(len(payload)) + payload)
            await writer.drain()
            return msgspec.json.decode(await _read_message(reader), type=_Answer)
        finally:
            writer.close()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size > MAX_MESSAGE:
        raise ValueError("the message is too large")
    return await reader.readexactly(size)


async def serve_detector(path: str, detect: Callable[[str], Awaitable[list[Seen]]]) -> asyncio.Server:
    """Serve a detector on a unix socket: what a worker process around Presidio or GLiNER runs.

    Args:
        path: where to listen; only this user may connect if the directory says so.
        detect: finds values in a text. What it raises ends the connection, and the router takes that for unknown.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, ValueError, msgspec.MsgspecError):
            request = msgspec.json.decode(await _read_message(reader), type=_Request)
            payload = msgspec.json.encode(_Answer(await detect(request.text)))
            writer.write(_LENGTH.pack(len(payload)) + payload)
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, path)
