"""What routers tell each other of their requests: news to send, and what a peer said, until the peer falls silent. Pure data.

Gauges of engines show the work of other routers late and without its size; a peer's notice shows it as a booking of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import msgspec

from router.placement.targets import Work

SILENT_S = 5.0
"""After so long without a word a router is taken to be gone, and its requests with it: gauges show what is left of them."""
HURRY_S = 0.05
"""So many seconds of prefill are not kept for the next round of news: until its peers know, they find that target free."""
_MOST_NEWS = 50_000
"""Kept while nobody takes them; whoever falls behind so far is better off with the gauges."""


class Notice(msgspec.Struct, frozen=True, tag=True):
    """What a router tells its peers, so that they book its requests as well: once when it sends one, when its first byte
    comes, and when it ends. `id` is unique among all routers' requests in flight."""

    id: str
    incarnation: str
    event: str
    """`sent`, `first` or `end`."""
    work: Work | None = None


class News:
    """What this router has to tell.

    Args:
        router: its name, unique among the routers.
    """

    def __init__(self, router: str) -> None:
        self.router = router
        self._numbers = count()
        self._notices: list[Notice] = []
        self._untold_s = 0.0
        self.hurry: Callable[[], None] = _nothing
        """Called when what is untold should not wait for the next round."""

    def sent(self, incarnation: str, work: Work) -> str:
        """A request is on its way: the name that the later news of it go by."""
        id = f"{self.router}/{next(self._numbers)}"
        self._add(Notice(id, incarnation, "sent", work))
        self._untold_s += work.prefill_s
        if self._untold_s >= HURRY_S:
            self.hurry()
        return id

    def later(self, id: str, incarnation: str, event: str) -> None:
        """Its first byte came (`first`), or it ended (`end`)."""
        self._add(Notice(id, incarnation, event))

    @property
    def waiting(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._notices)

    def take(self) -> bytes:
        """All news since the last time, as `read_news` reads them."""
        notices, self._notices = self._notices, []
        self._untold_s = 0.0
        return msgspec.msgpack.encode(notices)

    def _add(self, notice: Notice) -> None:
        self._notices.append(notice)
        if len(self._notices) > _MOST_NEWS:
            del self._notices[: _MOST_NEWS // 2]


def _nothing() -> None:
    return


def read_news(data: bytes) -> list[Notice]:
    """What a peer told.

    Raises:
        msgspec.MsgspecError: it is no news.
    """
    return msgspec.msgpack.decode(data, type=list[Notice])


class Peers:
    """Which requests each peer has told of and not ended. Times are UNIX seconds."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, str]] = {}
        self._heard: dict[str, float] = {}

    def hear(self, router: str, notices: Iterable[Notice], now: float) -> None:
        """A peer's news; they still have to be booked (`Fleet.noticed`)."""
        self._heard[router] = now
        known = self._open.setdefault(router, {})
        for notice in notices:
            if notice.event == "sent":
                known[notice.id] = notice.incarnation
            elif notice.event == "end":
                known.pop(notice.id, None)

    def silent(self, now: float) -> list[Notice]:
        """The ends of all requests of peers that have not been heard of for too long; those are forgotten."""
        ends: list[Notice] = []
        for router in [router for router, at in self._heard.items() if now - at > SILENT_S]:
            del self._heard[router]
            ends += (Notice(id, incarnation, "end") for id, incarnation in self._open.pop(router, {}).items())
        return ends
