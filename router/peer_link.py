"""How routers tell each other of their requests: sealed datagrams, straight from one to the others, a few milliseconds after.

A datagram may be lost, late or overtaken; nothing waits for it. Once a second each router says which of its requests are in
flight, and is asked again for what was lost. Where no datagram gets through, the same news goes in rounds by another way
(`Backlog`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Iterable

from router.peer_seal import Letter, Seals, Unbelievable, write_letter, write_letters
from router.placement.fleet import Fleet
from router.placement.peers import BATCH_S, HURRY_S, SILENT_S, News, Notice

ALIVE_PERIOD_S = 1.0
"""How often a router without news says that it lives, and each which of its requests are in flight."""
_GREET_S = 0.1
"""Whoever is not known yet is answered at once, but no more often than this: recorded datagrams of the dead look like them."""
_HEARD_S = 2.5
"""Whoever has said so much longer ago that it lives is not heard directly any more."""
_AT_ONCE = 64
"""Datagrams read before anything else has its turn."""
_MOST_WANTED = 100
"""Requests that a router asks to be told of again at once; the rest has time until the next roll."""
_BUFFER_BYTES = 4 * 1024 * 1024
"""What is to wait unread while the router does something else; the system may give less."""
_MOST_LATER = 50_000
_log = logging.getLogger("tidegate.router")

Place = tuple[str, int]


class Backlog:
    """News for routers that hear no datagrams, until the next round."""

    def __init__(self) -> None:
        self._notices: list[Notice] = []
        self._untold_s = 0.0
        self.hurried = asyncio.Event()
        """Set while something in it should not wait for the next round."""

    def __len__(self) -> int:
        return len(self._notices)

    def add(self, notices: Iterable[Notice]) -> None:
        """More news."""
        for notice in notices:
            self._notices.append(notice)
            if notice.work is not None:
                self._untold_s += notice.work.prefill_s
        del self._notices[:-_MOST_LATER]
        if self._untold_s >= HURRY_S:
            self.hurried.set()

    def take(self) -> list[Notice]:
        """All of it."""
        notices, self._notices = self._notices, []
        self._untold_s = 0.0
        self.hurried.clear()
        return notices


class PeerLink:
    """Tells other routers what `fleet` does and books what they tell. Use from inside a running event loop.

    Args:
        fleet: whose `news` to tell, and where to book.
        secret: the cluster secret.

    Raises:
        ValueError: the fleet has no news to tell.
    """

    def __init__(self, fleet: Fleet, secret: bytes) -> None:
        if fleet.news is None:
            raise ValueError("a router that tells nothing needs no link")
        self._fleet = fleet
        self.news: News = fleet.news
        self._seals = Seals(secret)
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._fixed: frozenset[Place] = frozenset()
        self._announced: dict[str, tuple[Place, float]] = {}
        self._places: frozenset[Place] = frozenset()
        self._heard: dict[str, float] = {}
        self._sessions: dict[bytes, float] = {}
        self._told_at = 0.0
        self._alive_at = 0.0
        self.later: Backlog | None = None
        """News kept for rounds; None while everybody hears datagrams."""
        self.refused = 0
        """Datagrams that proved nothing."""
        self.news.wake = self._wake

    @property
    def place(self) -> Place | None:
        """Where it listens; None where it does not."""
        if self._socket is None:
            return None
        host, port = self._socket.getsockname()[:2]
        return host, port

    def listen(self, place: Place) -> None:
        """Open a datagram socket there; port 0 is any free one.

        Raises:
            OSError: it cannot be opened.
        """
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            opened.bind(place)
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self._loop.add_reader(opened, self._read)

    def always_tell(self, places: Iterable[Place]) -> None:
        """Routers that listen at fixed addresses."""
        self._fixed = frozenset(places)
        self._gather()

    def announce(self, router: str, place: Place | None, now: float) -> None:
        """Where a router says it listens; it has to say so again before `SILENT_S` are over.

        Args:
            router: its name.
            place: its address, in numbers; None where it has none.
            now: UNIX time.
        """
        if place is None or router == self.news.router:
            return
        with contextlib.suppress(ValueError):  # a name would have to be looked up for every datagram
            ipaddress.ip_address(place[0])
            known = self._announced.get(router)
            self._announced[router] = place, now
            if known is None or known[0] != place:
                self._gather()

    def hears(self, router: str, now: float) -> bool:
        """Whether a router's datagrams come through."""
        return router == self.news.router or now - self._heard.get(router, 0.0) <= _HEARD_S

    @property
    def heard(self) -> int:
        """How many routers' datagrams come through."""
        now = time.time()
        return sum(now - at <= _HEARD_S for at in self._heard.values())

    async def run(self) -> None:
        """Say every second that this router lives and what it has in flight; forget who has not said so. For ever."""
        while True:
            self.say_alive(time.time())
            await asyncio.sleep(ALIVE_PERIOD_S)

    def say_alive(self, now: float) -> None:
        """One round of it; `now` is UNIX time."""
        self._alive_at = now
        self._fleet.forget_silent_peers(now)
        self._heard = {name: at for name, at in self._heard.items() if now - at <= SILENT_S}
        self._sessions = {name: at for name, at in self._sessions.items() if now - at <= SILENT_S}
        if any(now - at > SILENT_S for _, at in self._announced.values()):
            self._announced = {name: entry for name, entry in self._announced.items() if now - entry[1] <= SILENT_S}
            self._gather()
        if self._places:
            self._tell()  # before the roll: what it calls ended must have been told
            self._send(write_letter(Letter(self.news.router, sessions=tuple(self._sessions))))
            for roll in self.news.roll():
                self._send(write_letter(Letter(self.news.router, rolls=(roll,))))

    def close(self) -> None:
        """Tell what is left, and no more."""
        self._tell()
        self.news.mute()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _gather(self) -> None:
        self._places = self._fixed | {place for place, _ in self._announced.values()}

    def _wake(self) -> None:
        """There is news again: it goes at once, or when `BATCH_S` have passed since the last."""
        now = self._loop.time()
        due = self._told_at + BATCH_S
        if due <= now:
            self._loop.call_soon(self._tell)
        else:
            self._loop.call_at(due, self._tell)

    def _tell(self) -> None:
        notices = self.news.take()
        if not notices:
            return
        self._told_at = self._loop.time()
        if self.later is not None:
            self.later.add(notices)
        if self._places:
            for letter in write_letters(self.news.router, notices):
                self._send(letter)

    def _send(self, letter: bytes) -> None:
        if self._socket is None:
            return
        datagram = self._seals.close(letter)
        for place in self._places:
            # A full buffer or a router that is gone loses it.
            with contextlib.suppress(OSError):
                self._socket.sendto(datagram, place)

    def _read(self) -> None:
        if self._socket is None:
            return
        for _ in range(_AT_ONCE):
            try:
                datagram, source = self._socket.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError:  # what an earlier datagram of ours met: nobody listens there any more
                continue
            if source[:2] in self._places:
                self._take(datagram)
            else:  # not worth the cost of finding out that it is not sealed
                self.refused += 1

    def _take(self, datagram: bytes) -> None:
        try:
            session, letter = self._seals.open(datagram)
        except Unbelievable:
            self.refused += 1
            return
        now = time.time()
        if letter.router == self.news.router:
            return
        known = session.name in self._sessions
        self._sessions[session.name] = now
        if not (known and session.believed) and now - self._alive_at >= _GREET_S:
            self.say_alive(now)
        if session.believed:
            self._heard[letter.router] = now
            unknown = self._fleet.hear(letter.router, letter.notices, now, letter.rolls)
            if unknown:
                self._send(write_letter(Letter(self.news.router, asked=letter.router, wanted=unknown[:_MOST_WANTED])))
            if letter.asked == self.news.router:
                for again in write_letters(self.news.router, self.news.again(letter.wanted)):
                    self._send(again)
