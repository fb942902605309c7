"""How routers under Ray Serve find each other, and how news goes where no datagram gets through: by Serve's broadcast, in rounds.

A broadcast takes milliseconds of CPU and ten or twenty to arrive, so it carries addresses once a second, and the news itself
only while a router says that it does not hear this one directly: every 100 ms, and between rounds when somebody was given a long
prefill.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from router.peer_link import ALIVE_PERIOD_S, Backlog, PeerLink
from router.peer_seal import Letter, read_letter, write_letter
from router.placement.fleet import Fleet

NEWS_PERIOD_S = 0.1
COMPLAIN_S = 30.0
"""So long no datagram got through to some router, until the log says so."""
_REST = 4.0
"""Times as long as a round took, nothing is told after it: under a flood of long prompts telling is no more than a fifth."""

_log = logging.getLogger("ray.serve")


class Announcement(msgspec.Struct, frozen=True, array_like=True):
    """Where a router listens for datagrams (`port` 0: nowhere), and a letter for those who hear none of its own."""

    host: str
    port: int
    letter: bytes


async def tell_in_rounds(link: PeerLink, broadcast: Callable[[bytes], Awaitable[bool]]) -> None:
    """Announce this router to the others, and tell those who hear no datagrams what it does, for ever.

    Rounds follow each other, they never overlap: an end must not overtake what it ends.

    Args:
        link: whose news to tell.
        broadcast: brings an encoded `Announcement` to all others; True when all of them hear this router directly.
    """
    told_at, rest_s = 0.0, 0.0
    link.later = Backlog()
    complaint = _Complaint(time.time())
    while True:
        await asyncio.sleep(rest_s)
        later = link.later
        if later is None:
            await asyncio.sleep(ALIVE_PERIOD_S - rest_s)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NEWS_PERIOD_S - rest_s):
                    await later.hurried.wait()
        now, rest_s = time.time(), 0.0
        alive = now - told_at >= ALIVE_PERIOD_S
        if not alive and not later:
            continue
        told_at = now if alive else told_at
        reached = await broadcast(_announcement(link, later, alive))
        rest_s = min(NEWS_PERIOD_S, max(0.0, _REST * (time.time() - now)))
        if reached != (link.later is None):
            link.later = None if reached else Backlog()
        complaint.note(reached, time.time())


class _Complaint:
    """Says once that datagrams do not get through, when they have not for a while: at a start they cannot yet."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._made = False

    def note(self, reached: bool, now: float) -> None:
        """Whether they did this time; `now` is UNIX time."""
        if reached:
            self._since, self._made = now, False
        elif not self._made and now - self._since >= COMPLAIN_S:
            self._made = True
            _log.warning(
                "tidegate: some router hears no datagrams of this one, so they tell each other through Serve, later: "
                "is UDP between the routers' nodes closed?"
            )


def _announcement(link: PeerLink, later: Backlog | None, alive: bool) -> bytes:
    host, port = link.place or ("", 0)
    notices = later.take() if later is not None else []
    rolls = link.news.roll() if alive and later is not None else []
    return msgspec.msgpack.encode(Announcement(host, port, write_letter(Letter(link.news.router, notices, (), rolls))))


def hear_announcement(link: PeerLink, fleet: Fleet, data: bytes, now: float) -> bool:
    """Take what another router (or this one) announces.

    Args:
        link: this router's.
        fleet: where to book what cannot be heard directly.
        data: an encoded `Announcement`.
        now: UNIX time.

    Returns:
        Whether this router hears that one directly.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    announced = msgspec.msgpack.decode(data, type=Announcement)
    letter = read_letter(announced.letter)
    link.announce(letter.router, (announced.host, announced.port) if announced.port else None, now)
    if link.hears(letter.router, now):
        return True
    fleet.hear(letter.router, letter.notices, now, letter.rolls)
    return False
