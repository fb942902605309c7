"""The router's end of the process that writes its audit log (`router.ledger.writer_process`).

What happens is gathered for most of the window and sent in one piece. A writer that ends is started again; until then records are
kept here, nothing may leave the cluster, and how many were lost with it is written down by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256

import msgspec

from router.ledger import pipe
from router.ledger.pipe import Opened, Settled, State
from router.ledger.tiles import LONGEST_ENTRY
from router.ledger.writer import FULL, TOO_LONG, AuditUnavailable, Opening, Settle, reason_of, unavailable
from router.ledger.writer_process import Order

_log = logging.getLogger("tidegate.audit")

_GATHER = 0.7
"""Share of the window that records are gathered for here; the rest is for sending, hashing and writing them. The longer, the
fewer times two processes and their threads wake up, which costs more than the records do."""
_AT_ONCE = 512
"""So many records are sent without waiting for more: they fit into the socket, and into one append."""
_SOCKET_BYTES = 1 << 18
_BLOCKED_S = 0.005
"""How soon a socket that is full is tried again."""
_OPEN_S = 60.0
"""Longest wait for a log to be opened: a large journal is read back first."""
_AGAIN_S = 1.0
_TICK_S = 1.0
_READ = 1 << 16
_NOT_OPEN = "the audit log is not open"


_Item = bytes | tuple[int, bytes]
"""What is to be sent: a record, or kind and content of another message."""
_Spawned = tuple[socket.socket | None, subprocess.Popen[bytes] | None, Opened]
"""The socket to a process that has its log open, the process, and its word. No socket: no log; no process: not even that."""


class RemoteWriter:
    """Hands records to a process of its own that writes them. See `LogWriter`, which it stands in for.

    Args:
        order: the log to open, and how to write it.
    """

    def __init__(self, order: Order) -> None:
        self.failure: str | None = _NOT_OPEN
        self.origin = ""
        self.each_second: Callable[[], None] = lambda: None
        self._order = msgspec.structs.replace(order, window_s=0.0)  # whatever waits has waited here
        self._gather_s = order.window_s * _GATHER
        self._capacity = order.capacity
        self._opening: Opening = lambda opened: ()
        self._out: list[_Item] = []
        self._plenty = min(_AT_ONCE, order.capacity)
        self._rest = b""
        self._sending = threading.Lock()
        self._scheduled = self._blocked = self._closing = False
        self._tickets = self._sent = self._missing = self._losses = 0
        self._settles: dict[int, Settle] = {}
        self._state = State(None, 0, 0)
        self._incoming = pipe.Incoming()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    @property
    def pid(self) -> int:
        """The process that writes; 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """True while there is a process that takes what is handed over."""
        return self._channel is not None and not self._closing

    @property
    def has_room(self) -> bool:
        """False while as much is waiting for the writer as may be kept here."""
        return len(self._out) < self._capacity

    @property
    def losses(self) -> int:
        """How often something was lost, here or there."""
        return self._losses + self._state.losses

    def start(self, opening: Opening) -> None:
        """Start the process and wait until its log is open; one that cannot be opened is tried again and again.

        Args:
            opening: gives the records that a log begins with which is opened now, or again.
        """
        self._opening = opening
        self._attach()
        self._take_on(*self._spawn())

    def keep(self, data: bytes) -> str:
        """As `LogWriter.keep`."""
        self._out.append((pipe.BLOB, data))
        return sha256(data).hexdigest()

    def hand_over(self, begun: bytes, settle: Settle | None = None) -> bool:
        """As `LogWriter.hand_over`; what is to be told of is refused at once while no process is there."""
        out = self._out
        if settle is None and len(out) < self._plenty and len(begun) <= LONGEST_ENTRY and not self._missing:  # as a rule
            out.append(begun)
            if not self._scheduled:
                self._schedule()
            return True
        if len(out) >= self._capacity:
            self.lose(FULL, settle)
            return False
        if len(begun) > LONGEST_ENTRY:
            self.lose(TOO_LONG, settle)
            return False
        if settle is not None and not self.alive:
            settle(unavailable(self.failure or "it is closed"))
            return False
        if self._missing:
            missing, self._missing = self._missing, 0
            out.append((pipe.LOST, missing.to_bytes(8, "big")))
        if settle is None:
            out.append(begun)
        else:
            self._tickets += 1
            self._settles[self._tickets] = settle
            out.append((pipe.URGENT, pipe.TICKET.pack(self._tickets) + begun))
        if not self._rest:
            self._flush()
        return True

    def lose(self, error: BaseException, settle: Settle | None = None) -> None:
        """As `LogWriter.lose`."""
        self._missing += 1
        self._losses += 1
        if settle is not None:
            settle(unavailable(reason_of(error)))

    def close(self, timeout_s: float) -> None:
        """Have what is left written, and the process end. Blocks up to `timeout_s` seconds."""
        channel, process = self._channel, self._process
        self._closing = True
        if channel is not None:
            with self._sending, contextlib.suppress(OSError):
                channel.settimeout(timeout_s)
                channel.sendall(self._rest + self._take_out() + pipe.message(pipe.CLOSE, b""))
                channel.shutdown(socket.SHUT_WR)
        if process is not None:
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                _log.error("audit: the writer has not ended after %.0f s; it goes on by itself", timeout_s)

    def _attach(self) -> None:
        """Belong to the event loop that runs, if one does. Without one, whatever is handed over is sent at once."""
        with contextlib.suppress(RuntimeError):
            self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
            self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        if not self._closing:
            self.each_second()
            self._loop.call_later(_TICK_S, self._tick)

    def _schedule(self) -> None:
        loop = self._loop
        self._scheduled = True
        if loop is None or loop.is_closed():
            self._send_gathered()
        elif threading.get_ident() == self._loop_thread:
            loop.call_later(self._gather_s, self._send_gathered)
        else:
            loop.call_soon_threadsafe(self._send_gathered)

    def _send_gathered(self) -> None:
        self._scheduled = False
        self._flush()

    def _send_rest(self) -> None:
        self._blocked = False
        self._flush()

    def _flush(self) -> None:
        """Send what was gathered, as far as the socket takes it."""
        with self._sending:
            while self._channel is not None and not self._closing and (data := self._rest or self._take_out()):
                try:
                    sent = self._channel.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    sent = len(data)  # its end is noticed, and the loss counted, where its answers are read
                self._rest = data[sent:]
                if self._rest:
                    break
            self._plenty = self._capacity if self._rest else min(_AT_ONCE, self._capacity)
            loop, blocked = self._loop, bool(self._rest) and not self._blocked
            if blocked and loop is not None and not loop.is_closed():
                self._blocked = True
                loop.call_soon_threadsafe(loop.call_later, _BLOCKED_S, self._send_rest)

    def _take_out(self) -> bytes:
        """What waits to be sent, as messages. Others may go on handing over meanwhile."""
        count = len(self._out)
        items = self._out[:count]
        del self._out[:count]
        data = []
        for _, group in itertools.groupby(items, type):
            some = list(group)
            records = [item for item in some if isinstance(item, bytes)]
            messages = [item for item in some if not isinstance(item, bytes)]
            self._sent += len(records) + sum(kind == pipe.URGENT for kind, _ in messages)
            data += [pipe.pack_records(records[at : at + _AT_ONCE]) for at in range(0, len(records), _AT_ONCE)]
            data += [pipe.message(*item) for item in messages]
        return b"".join(data)

    def _read(self) -> None:
        """Take what the writer says."""
        channel = self._channel
        if channel is None:
            return
        try:
            data = channel.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose_writer(channel)
            return
        for kind, content in self._incoming.feed(data):
            if kind == pipe.STATE:
                self._state = msgspec.msgpack.decode(content, type=State)
                self.failure = self._state.failure
            elif kind == pipe.SETTLED:
                told = msgspec.msgpack.decode(content, type=Settled)
                settle = self._settles.pop(told.ticket)
                settle(None if told.error is None else AuditUnavailable(told.error))

    def _spawn(self) -> _Spawned:
        """Start a process and wait for its word. Blocks."""
        try:
            process, ours = self._launch()
        except OSError as error:
            return None, None, Opened("", 0, 0, f"its writer cannot be started: {error.strerror}")
        try:
            ours.settimeout(_OPEN_S)
            ours.sendall(pipe.tell(pipe.ORDER, self._order))
            opened = msgspec.msgpack.decode(pipe.receive_first(ours), type=Opened)
        except OSError as error:
            opened = Opened("", 0, 0, f"its writer does not answer: {error or type(error).__name__}")
        if opened.error:
            ours.close()
            process.kill()
            return None, process, opened
        ours.setblocking(False)
        return ours, process, opened

    @staticmethod
    def _launch() -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        with theirs:
            argv = [sys.executable, "-m", "router.ledger.writer_process", str(theirs.fileno())]
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            process = subprocess.Popen(
                argv, env=env, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True
            )
        return process, ours

    def _take_on(self, channel: socket.socket | None, process: subprocess.Popen[bytes] | None, opened: Opened) -> None:
        """Go on with a process that was started."""
        self._process = process
        if channel is not None and self._closing:
            channel.close()  # which ends it
            return
        if channel is None:
            if process is not None:
                process.wait()
            self._fail(f"no log can be opened: {opened.error}")
            return
        self._channel, self._incoming, self.origin = channel, pipe.Incoming(), opened.origin
        self._losses, self._state, self._sent = self._losses + self._state.losses, State(None, 0, 0), 0
        kept = list(self._out)
        self._out.clear()
        for begun in self._opening(opened):
            self.hand_over(begun)
        self._out += kept
        if self.failure not in (None, _NOT_OPEN):
            _log.warning("audit: the log of %s is written again", self.origin)
        self.failure = None
        if self._loop is not None:
            self._loop.add_reader(channel.fileno(), self._read)
        self._flush()

    def _lose_writer(self, channel: socket.socket) -> None:
        """The process has ended, or its socket is of no use any more."""
        assert self._loop is not None and self._process is not None
        self._loop.remove_reader(channel.fileno())
        with self._sending:
            self._channel, self._rest = None, b""
        channel.close()
        if self._closing:
            return
        self._process.kill()
        code = self._process.wait()
        waiting, self._settles = self._settles, {}
        self._drop_urgent()
        self._missing += max(0, self._sent - self._state.written)
        self._losses += 1
        self._fail(f"its writer has ended ({code})")
        for settle in waiting.values():
            settle(unavailable("its writer has ended"))

    def _drop_urgent(self) -> None:
        """Take back what was not sent and somebody waited for: it is refused, so it must not be recorded as if it happened."""
        count = len(self._out)
        self._out[:count] = [item for item in self._out[:count] if isinstance(item, bytes) or item[0] != pipe.URGENT]

    def _fail(self, reason: str) -> None:
        if reason != self.failure:
            _log.error("audit: %s; nothing leaves the cluster", reason)
        self.failure = reason
        if self._loop is not None and not self._closing:
            self._loop.call_later(_AGAIN_S, self._start_again)

    def _start_again(self) -> None:
        assert self._loop is not None
        if not self._closing:
            started = self._loop.run_in_executor(None, self._spawn)
            started.add_done_callback(lambda done: self._take_on(*done.result()) if not done.cancelled() else None)
