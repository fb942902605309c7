"""A little model behind an engine that spells its events oddly, and dies in every way that engines do."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _dataplane.little_model import LittleModel, stream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ENGINE_ERROR = (
    b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}'
)
"""As vLLM spells it when its engine core dies in the middle of a stream; `[DONE]` follows all the same."""

SPELLINGS = ("plain", "no space", "pings", "spaced", "lines", "crlf", "cr")
PIECES = ("events", "bytes", "all", "odd", "segments")
ENDS = (
    "whole",
    "abort",
    "close",
    "in event",
    "error",
    "no done",
    "garbage",
    "two answers",
)
REFUSALS = ("500", "503", "429", "400", "json", "html")


@dataclass(frozen=True, slots=True)
class Manner:
    """How one answer goes.

    Attributes:
        spelling: how an event is written.
        pieces: how the body is cut into chunks and writes.
        end: how it ends.
        at: after how many events; -1: before the head.
        refusal: what is answered in place of a stream, "" for a stream.
        seed: of the odd cuts.
    """

    spelling: str = "plain"
    pieces: str = "events"
    end: str = "whole"
    at: int = 1 << 30
    refusal: str = ""
    seed: int = 0


def spell(event: bytes, spelling: str) -> bytes:
    """One event of `stream` as some engine writes it: the same to a reader of the standard."""
    data = event.removeprefix(b"data: ").removesuffix(b"\n\n")
    if spelling == "no space":
        return b"data:" + data + b"\n\n"
    if spelling == "pings":
        return b": ping\n\n" + event
    if spelling == "spaced" and data != b"[DONE]":
        return b"data: " + json.dumps(json.loads(data), ensure_ascii=False).encode() + b"\n\n"
    if spelling == "lines" and data != b"[DONE]":
        text = json.dumps(json.loads(data), indent=1).encode()
        return b"".join(b"data: " + line + b"\n" for line in text.split(b"\n")) + b"\n"
    ending = {"crlf": b"\r\n", "cr": b"\r"}.get(spelling)
    return event if ending is None else event.replace(b"\n", ending)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def cut(events: list[bytes], pieces: str, dice: Random) -> list[bytes]:
    """What is written, one write after the other, framing and all."""
    body = b"".join(events)
    if pieces == "events":
        return [chunk(event) for event in events]
    if pieces == "bytes":
        return [chunk(body[i : i + 1]) for i in range(len(body))]
    if pieces == "all":
        return [chunk(body)]
    if pieces == "segments":
        framed = b"".join(chunk(event) for event in events)
        places = sorted(dice.randrange(len(framed) + 1) for _ in range(6))
        return [framed[a:b] for a, b in zip([0, *places], [*places, len(framed)], strict=True)]
    places = sorted(dice.randrange(len(body) + 1) for _ in range(len(events) * 2))
    return [chunk(body[a:b]) for a, b in zip([0, *places], [*places, len(body)], strict=True)]


class HostileModel(LittleModel):
    """`manners`: those of the next answers, shared by all engines of a test; plain ones when they are used up."""

    def __init__(self, manners: list[Manner]) -> None:
        super().__init__()
        self.manners = manners

    async def _answer(self, path: str, body: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> bool:
        manner = self.manners.pop(0) if self.manners else Manner()
        dice = Random(manner.seed)
        if manner.refusal:
            return await self._refuse(manner.refusal, writer)
        if manner.end != "whole" and manner.at < 0:
            writer.transport.abort()
            return False
        events = list(stream(path, body, request_id))
        end = manner.end if manner.at < len(events) else "whole"
        sent = [spell(event, manner.spelling) for event in events[: manner.at if end != "whole" else None]]
        if end == "error":
            sent += [spell(ENGINE_ERROR + b"\n\n", manner.spelling), spell(b"data: [DONE]\n\n", manner.spelling)]
        elif end == "in event":
            sent.append(spell(events[manner.at], manner.spelling)[: dice.randrange(1, 60)])
        writes = cut(sent, manner.pieces, dice)
        last = b"0\r\n\r\n" if end in ("whole", "error", "no done", "two answers") else b""
        if end == "two answers":
            last += b"HTTP/1.1 200 OK\r\n"
        elif end == "garbage":
            last = b"xyz\r\n\r\n"
        writes[-1:] = [writes[-1] + last] if writes else [last]
        writes[0] = HEAD + writes[0]
        for data in writes:
            writer.write(data)
            await writer.drain()
            if manner.pieces != "bytes":
                await asyncio.sleep(0)
        if last and end not in ("garbage", "two answers"):
            return True
        if end == "abort":
            await asyncio.sleep(0.002)
            writer.transport.abort()
        return False

    @staticmethod
    async def _refuse(refusal: str, writer: asyncio.StreamWriter) -> bool:
        kind, status, body = b"application/json", b"200 OK", b'{"error": {"message": "no"}}'
        if refusal == "html":
            kind, body = b"text/html", b"<html>data: [DONE]</html>"
        elif refusal != "json":
            status = refusal.encode() + b" Said"
        lines = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, kind, len(body))
        writer.write(lines + body)
        await writer.drain()
        return True
