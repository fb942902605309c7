"""What a router and the process that writes its audit log say to each other: messages over a socket, after kind and length."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

HEAD = struct.Struct(">BI")

RECORDS, BLOB, LOST, CLOSE = 1, 2, 3, 4
"""To the writer: records, a blob that later records refer to, a number of records that are missing, and the end."""
URGENT = 5
"""To the writer: the number of a request for word, in eight bytes, and a record that is to be on the medium before it comes."""
OPENED, STATE, SETTLED = 16, 17, 18
"""From the writer, all MessagePack: an `Opened` or an error, a `State`, a `Settled`."""
ORDER = 6
"""To the writer, before all else: which log to open, in MessagePack."""
TICKET = struct.Struct(">Q")
_READ = 1 << 16


class Opened(msgspec.Struct, frozen=True):
    """A log that was opened for appending. `recovered_bytes` are those of a torn append, which were removed."""

    origin: str
    size: int
    recovered_bytes: int
    error: str = ""
    """Why none was; the rest means nothing then."""


class State(msgspec.Struct, frozen=True):
    """Where the writer stands: why it cannot write now (None: it can), how many records it has lost and how many written."""

    failure: str | None
    losses: int
    written: int


class Settled(msgspec.Struct, frozen=True):
    """An urgent record is on the medium, or (`error`) never will be."""

    ticket: int
    error: str | None


def message(kind: int, data: bytes) -> bytes:
    """A message as bytes."""
    return HEAD.pack(kind, len(data)) + data


def tell(kind: int, data: Any) -> bytes:
    """A message with MessagePack in it."""
    return message(kind, msgspec.msgpack.encode(data))


def pack_records(begun: Sequence[bytes]) -> bytes:
    """Records as one message: how many, the length of each in two bytes, and then all of them."""
    count = len(begun)
    lengths = struct.pack(f">I{count}H", count, *map(len, begun))
    content = b"".join((lengths, *begun))
    return message(RECORDS, content)


def unpack_records(content: bytes) -> list[bytes]:
    """The records in the content of such a message."""
    (count,) = struct.unpack_from(">I", content)
    at, begun = 4 + 2 * count, []
    for length in struct.unpack_from(f">{count}H", content, 4):
        begun.append(content[at : at + length])
        at += length
    return begun


class Incoming:
    """Takes bytes as they come and gives whole messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that are complete with `data`, as kind and content."""
        data = self._rest + data
        at, end = 0, len(data)
        while end - at >= HEAD.size:
            kind, length = HEAD.unpack_from(data, at)
            if end - at - HEAD.size < length:
                break
            at += HEAD.size
            yield kind, data[at : at + length]
            at += length
        self._rest = data[at:]


def receive_first(channel: socket.socket) -> bytes:
    """The content of the first message, on which all else waits.

    Raises:
        ConnectionResetError: the other end is gone.
        OSError: the socket says so, or its time limit is over.
    """
    incoming = Incoming()
    while data := channel.recv(_READ):
        for _, content in incoming.feed(data):
            return content
    raise ConnectionResetError("it ended")
