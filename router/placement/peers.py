"""What routers tell each other of their requests: news to send, and what a peer said, until the peer falls silent. Pure data.

Gauges of engines show the work of other routers late and without its size; a peer's notice shows it as a booking of its own.
How notices travel is `router.peer_link`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from router.placement.targets import Work

BATCH_S = 0.005
"""What happens within so many seconds is told together. Until its peers know of a request they find its target free: of the
requests within their limits, rounds of 100 ms cost 8 routers 2.3 points on the worst trace, this and 2 ms on the way 0.9."""
HURRY_S = 0.05
"""Where news can only go in rounds, so many seconds of prefill do not wait for the next one."""
SILENT_S = 5.0
"""After so long without a word a router is taken to be gone, and its requests with it: gauges show what is left of them."""
_MOST_NEWS = 50_000
"""Kept while nobody takes them; whoever falls behind so far is better off with the gauges."""
_ROLL = 200
"""Requests in one `Open`, so that it fits a datagram."""

SENT, FIRST, END = "sent", "first", "end"


class Notice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a router tells its peers, so that they book its requests as well: once when it sends one, when its first byte
    comes, and when it ends. `id` is unique among the router's requests. Nothing in it follows from what a prompt says."""

    id: int
    event: str
    """`SENT`, `FIRST` or `END`."""
    incarnation: str = ""
    """Where to; told once, with `SENT`."""
    work: Work | None = None


class Open(msgspec.Struct, frozen=True, array_like=True):
    """Which of a router's requests from `since` up to `until` (not included) are still in flight: whatever a peer has booked of
    these numbers besides has ended, and the notice of it was lost."""

    since: int
    until: int
    unstarted: list[int] = []
    started: list[int] = []


class News:
    """What this router has to tell.

    Args:
        router: its name, unique among the routers.
    """

    def __init__(self, router: str) -> None:
        self.router = router
        self._last = 0
        self._notices: list[Notice] = []
        self._open: dict[int, Notice] = {}
        self._started: set[int] = set()
        self.wake: Callable[[], None] = _nothing
        """Called when there is something to tell again."""

    def mute(self) -> None:
        """Nobody is there any more to be woken."""
        self.wake = _nothing

    def sent(self, incarnation: str, work: Work) -> int:
        """A request is on its way: the number, from 1, that the later news of it go by."""
        self._last = id = self._last + 1
        self._open[id] = notice = Notice(id, SENT, incarnation, work)
        self._add(notice)
        return id

    def first(self, id: int) -> None:
        """Its first byte came."""
        self._started.add(id)
        self._add(Notice(id, FIRST))

    def end(self, id: int) -> None:
        """It ended."""
        self._open.pop(id, None)
        self._started.discard(id)
        self._add(Notice(id, END))

    def take(self) -> list[Notice]:
        """All news since the last time."""
        notices, self._notices = self._notices, []
        return notices

    def roll(self) -> list[Open]:
        """All requests in flight, so that a peer finds out what it has missed."""
        ids = list(self._open)
        parts = [ids[i : i + _ROLL] for i in range(0, len(ids), _ROLL)] or [[]]
        since, rolls = 0, []
        for number, part in enumerate(parts):
            until = parts[number + 1][0] if number + 1 < len(parts) else self._last + 1
            started = self._started.intersection(part)
            rolls.append(Open(since, until, [id for id in part if id not in started], sorted(started)))
            since = until
        return rolls

    def again(self, ids: Iterable[int]) -> list[Notice]:
        """What was told of these requests, as far as they are in flight, for a peer that has missed it."""
        notices = []
        for id in ids:
            if id in self._open:
                notices.append(self._open[id])
                if id in self._started:
                    notices.append(Notice(id, FIRST))
        return notices

    def _add(self, notice: Notice) -> None:
        notices = self._notices
        notices.append(notice)
        if len(notices) == 1:
            self.wake()
        elif len(notices) > _MOST_NEWS:
            del notices[: _MOST_NEWS // 2]


def _nothing() -> None:
    return


class Peers:
    """Which requests each peer has told of and not ended. Times are UNIX seconds."""

    def __init__(self) -> None:
        self._open: dict[str, set[int]] = {}
        self._heard: dict[str, float] = {}

    def hear(self, router: str, notices: Iterable[Notice], now: float) -> None:
        """A peer's news; they still have to be booked (`Fleet.noticed`)."""
        self._heard[router] = now
        known = self._open.setdefault(router, set())
        for notice in notices:
            if notice.event == SENT:
                known.add(notice.id)
            elif notice.event == END:
                known.discard(notice.id)

    def missed(self, router: str, rolls: Sequence[Open]) -> list[Notice]:
        """The news of a peer's requests that must have been lost, by what it says is in flight."""
        notices: list[Notice] = []
        known = self._open.get(router, set())
        for roll in rolls:
            notices += (Notice(id, FIRST) for id in roll.started if id in known)
            running = {*roll.unstarted, *roll.started}
            notices += (Notice(id, END) for id in known if roll.since <= id < roll.until and id not in running)
        return notices

    def unknown(self, router: str, rolls: Iterable[Open]) -> list[int]:
        """Requests that a peer says are in flight and has not told of, as far as was heard."""
        known = self._open.get(router, set())
        return [id for roll in rolls for id in (*roll.unstarted, *roll.started) if id not in known]

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative: nobody has been silent for that."""
        for router in self._heard:
            self._heard[router] += by

    def silent(self, now: float) -> list[tuple[str, Notice]]:
        """The ends of all requests of peers that have not been heard of for too long; those are forgotten."""
        ends: list[tuple[str, Notice]] = []
        for router in [router for router, at in self._heard.items() if now - at > SILENT_S]:
            del self._heard[router]
            ends += ((router, Notice(id, END)) for id in self._open.pop(router, set()))
        return ends
