"""The process that writes the audit log of one router.

A process of its own, because hashing and waiting for a disk cost a router that shares its interpreter with them several times
what they cost by themselves. It ends when its router does, whatever way that ends, and what it was handed is written first.

    python -m router.ledger.writer_process FD     the socket to the router; what to open comes over it first
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from pathlib import Path

import msgspec

from router.crash import forbid_core_dumps
from router.ledger import pipe
from router.ledger.checkpoint import CheckpointError, load_signer
from router.ledger.slots import open_slot
from router.ledger.store import LogBusy
from router.ledger.writer import LogWriter, Settle

_READ = 1 << 19
_CLOSE_S = 30.0


class Order(msgspec.Struct, frozen=True):
    """What a router asks for: see `router.config.ledger.Audit`. Paths are absolute; records come at most `window_s` seconds after
    they happened."""

    directory: str
    signing_key: str
    window_s: float
    capacity: int
    copies: tuple[str, ...]
    keep_days: float | None


class _Desk:
    """Between the socket and the writer's threads."""

    def __init__(self, channel: socket.socket, writer: LogWriter) -> None:
        self._channel = channel
        self._writer = writer
        self._sending = threading.Lock()
        writer.on_change = self._tell_state

    def _tell_state(self) -> None:
        writer = self._writer
        self._send(pipe.tell(pipe.STATE, pipe.State(writer.failure, writer.losses, writer.written)))
        if writer.gone:  # the router starts another process, which opens a log where this one should be
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def _settle(self, ticket: int) -> Settle:
        def settle(error: BaseException | None) -> None:
            self._send(pipe.tell(pipe.SETTLED, pipe.Settled(ticket, None if error is None else str(error))))

        return settle

    def _send(self, data: bytes) -> None:
        # The router is gone: what it handed over is written all the same.
        with self._sending, contextlib.suppress(OSError):
            self._channel.sendall(data)

    def serve(self) -> None:
        """Take what the router sends until it says that this was all, or is gone."""
        incoming, writer = pipe.Incoming(), self._writer
        while True:
            try:
                data = self._channel.recv(_READ)
            except ConnectionResetError:
                data = b""
            if not data:
                return
            for kind, content in incoming.feed(data):
                if kind == pipe.RECORDS:
                    writer.hand_over_all(pipe.unpack_records(content))
                elif kind == pipe.URGENT:
                    (ticket,) = pipe.TICKET.unpack_from(content)
                    writer.hand_over(content[pipe.TICKET.size :], self._settle(ticket))
                elif kind == pipe.BLOB:
                    writer.keep(content)
                elif kind == pipe.LOST:
                    writer.lose_many(int.from_bytes(content, "big"))
                elif kind == pipe.CLOSE:
                    return


def _open(order: Order) -> LogWriter:
    store = open_slot(Path(order.directory), load_signer(Path(order.signing_key)))
    copies = tuple(Path(copy) for copy in order.copies)
    return LogWriter(store, order.window_s, order.capacity, copies, order.keep_days)


def main(descriptor: int) -> None:
    """Open what the router asks for, write what it sends, and end when it has ended."""
    forbid_core_dumps()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group, also to a router that has things to say yet
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    wanted = pipe.receive_first(channel)
    try:
        writer = _open(msgspec.msgpack.decode(wanted, type=Order))
    except (OSError, CheckpointError, LogBusy) as error:
        channel.sendall(pipe.tell(pipe.OPENED, pipe.Opened("", 0, 0, str(error))))
        return
    desk = _Desk(channel, writer)
    opened = writer.opened
    with contextlib.suppress(OSError):
        channel.sendall(pipe.tell(pipe.OPENED, opened))
    writer.start()
    try:
        desk.serve()
    finally:
        writer.close(_CLOSE_S)
        channel.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
