"""Limits that several router replicas share: each works on leases, renewed by a thread, so that no request waits for the store.

A replica never uses more of a counter than it was granted, and the grants of all replicas never add up to more than the
limit. The one exception is a counter that this replica has not asked for yet: half a percent of the limit (at least one) may
be used at once, so that the first request of a key is not refused. When the store cannot be reached, every replica keeps to
its even share of each limit.

Neither exception holds for strict limits (money for what leaves the cluster): of those nothing is used that was not granted, and
nobody else is granted it before it is known to be unused. While the store is away what was granted before is all there is; what a
replica had been granted that vanished together with its usage file stays unused until the window ends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from router.identity.books import Window, window_of
from router.identity.limit import Limit, Period
from router.identity.usage_file import UsageFile, find_dead
from router.store.counters import Counters, Wish
from router.store.database import StoreError, reason_of

_log = logging.getLogger("tidegate.limits")

_SYNC_S = 0.05
_HEARTBEAT_S = 0.5
_QUIET_AFTER_S = 0.5
"""Without any use for so long, the thread sleeps from heartbeat to heartbeat, and the first use wakes it."""
_WANTED_S = 1.0
"""For so long what somebody asked for and did not find is kept for whoever asks next."""
_ALONE_AFTER_S = 3.0
_FORGET_S = 600.0


class _Lease:
    """This replica's part of one counter. The event loop changes `used` and what was wanted, the thread everything else."""

    __slots__ = (
        "asked",
        "end",
        "free",
        "granted",
        "limit",
        "place",
        "reported",
        "short",
        "touched",
        "used",
        "wanted",
        "wanted_until",
        "window",
    )

    def __init__(self, limit: Limit, window: int, end: float) -> None:
        self.limit = limit
        self.window = window
        self.end = end
        self.granted = 0
        self.used = 0
        self.free = limit.amount
        self.reported = -1
        self.asked = False
        self.place: int | None = None
        """Where the use stands in the usage file."""
        self.touched = time.monotonic()
        self.wanted = 0
        """What was asked for last and not there."""
        self.wanted_until = 0.0
        self.short = False
        """The store may have what was wanted, and has not been asked yet."""


class LeasedBooks:
    """A `Source` for `Limits` over counters that replicas share.

    Args:
        counters: the shared counters.
        known: limits to ask for before anybody needs them.
        usage: the directory in which routers of this machine keep what they have used; None: a killed one's last use is lost.
    """

    def __init__(self, counters: Counters, known: Callable[[], tuple[Limit, ...]] = tuple, usage: Path | None = None) -> None:
        self._counters = counters
        self._usage = usage
        self._file = None if usage is None else _open_file(usage, counters.replica)
        self._known = known
        self._bury_at = 0.0
        self._leases: dict[tuple[str, int], _Lease] = {}
        self._alive = 1
        self._reached = time.monotonic()
        self._failing = False
        self._wake = threading.Event()
        self._asleep = False
        """The thread waits for the next heartbeat unless it is woken: nothing was used for a while."""
        self._closing = False
        self._syncing = threading.Lock()
        """Held by whoever talks to the store: the thread, or who asks for leases that must be there first."""
        self._thread = threading.Thread(target=self._run, name="tidegate-limits", daemon=True)

    def start(self) -> None:
        """Get first leases, then keep them renewed."""
        self._renew()
        self._thread.start()

    def ask_for(self, limits: Iterable[Limit]) -> None:
        """Have leases on limits before anybody may use them, so that a new key's first requests are counted everywhere.

        Waits for the store; where that fails, the leases are asked for later, as for a limit nobody knew.
        """
        now = time.time()
        fresh = {limit for limit in limits if not self._has_lease(limit, window_of(limit.period, now).index)}
        if fresh and not self._failing:  # without the store every replica keeps to its share anyway
            self._renew(fresh)

    def _has_lease(self, limit: Limit, window: int) -> bool:
        lease = self._leases.get((limit.counter, window))
        return lease is not None and lease.limit == limit

    def _renew(self, more: Iterable[Limit] = ()) -> None:
        with self._syncing:
            self._bury()
            self._prepare(more)
            self._sync()

    def close(self) -> None:
        """Report the last use and give everything back."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        with self._syncing:
            self._sync()
        try:
            self._counters.leave()
        except StoreError as error:
            _log.warning("limits: %s; what this router did not use is free in a few seconds", error)
            return  # the file stays, for whoever reaches the store next
        file, self._file = self._file, None
        if file is not None:
            file.close()

    @property
    def failing(self) -> bool:
        """True while the store is away: this router keeps to its share."""
        return self._failing

    @property
    def counted(self) -> str:
        """Over whom, in words for `tidegate status`."""
        return "over all routers" + ("; the store is away, and what is left here is all there is" if self._failing else "")

    def room(self, limit: Limit, window: Window, now: float, wanted: int = 0) -> int:
        """How much may still be taken, here and now; where that is less than what is wanted, the store is asked for it."""
        lease = self._leases.get((limit.counter, window.index))
        if lease is None:
            lease = self._leases[limit.counter, window.index] = self._open(limit, window)
            self._wake.set()
        lease.touched = time.monotonic()
        if self._failing and not limit.strict:
            return limit.amount // self._alive - lease.used
        if not lease.asked:
            return (0 if limit.strict else max(1, limit.amount // 200)) - lease.used
        left = min(lease.granted, limit.amount) - lease.used  # what was granted under a higher limit is not this one's
        if left < wanted:
            lease.wanted, lease.wanted_until = wanted, lease.touched + _WANTED_S
            if not lease.short and wanted - left <= lease.free:
                lease.short = True
                self._wake.set()
        elif left * 2 < lease.granted - max(0, lease.reported) and lease.free:
            self._wake.set()
        return left

    def take(self, limit: Limit, index: int, amount: int) -> None:
        """Take so much."""
        lease = self._leases.get((limit.counter, index))
        if lease is not None:
            lease.used = max(0, lease.used + amount)
            if lease.place is not None and self._file is not None:
                self._file.put(lease.place, lease.used)
            if self._asleep:
                self._wake.set()

    def _open(self, limit: Limit, window: Window) -> _Lease:
        lease = _Lease(limit, window.index, window.end)
        if self._file is not None:
            lease.place = self._file.open(_name(limit, window.index))
        return lease

    def _close(self, lease: _Lease) -> None:
        place, lease.place = lease.place, None
        if place is not None and self._file is not None:
            self._file.free(place)

    def _bury(self) -> None:
        """Enter what routers of this machine had used when they were killed; before they count as dead, which takes longer."""
        if time.monotonic() < self._bury_at:
            return
        self._bury_at = time.monotonic() + _HEARTBEAT_S
        for dead in find_dead(self._usage) if self._usage is not None else ():
            entered = False
            try:
                self._counters.bury(dead.replica, dead.read(), time.time())
                entered = True
            except Exception as error:  # a damaged file raises what it likes
                _log.warning("limits: the use of a router that was killed is not entered yet: %s", _why(error))
            dead.close(entered=entered)

    def _run(self) -> None:
        beat = used_at = -math.inf
        while not self._closing:
            if self._wake.wait(_HEARTBEAT_S if self._asleep else _SYNC_S):
                self._wake.clear()
            self._asleep = False
            moment = time.monotonic()
            if self._has_news():
                used_at = moment
            if used_at == moment or moment - beat >= _HEARTBEAT_S:
                beat = moment
                try:
                    self._renew()
                except Exception as error:  # whatever it is, the thread goes on
                    self._miss(error)
                time.sleep(0.005)
            # First asleep, then a last look: what is used from here on wakes it, and what was used before is seen.
            self._asleep = moment - used_at >= _QUIET_AFTER_S
            if self._asleep and self._has_news():
                self._asleep = False

    def _has_news(self) -> bool:
        """Whether the store has not been told of some use, or of what somebody wants."""
        return any(lease.used != lease.reported or lease.short for lease in list(self._leases.values()))

    def _prepare(self, more: Iterable[Limit]) -> None:
        """Leases for the limits that are known, in this window and in the one that is about to begin."""
        now, moment = time.time(), time.monotonic()
        recent = {lease.limit for lease in list(self._leases.values()) if moment - lease.touched < _FORGET_S}
        # A limit that was changed has one lease: the amount known now replaces the one used recently.
        for limit in {limit.counter: limit for limit in (*recent, *self._known(), *more)}.values():
            for at in (now, now + 2.0):
                window = window_of(limit.period, at)
                lease = self._leases.get((limit.counter, window.index))
                if lease is not None:
                    lease.limit = limit
                    continue
                made = self._open(limit, window)
                fresh = self._leases.setdefault((limit.counter, window.index), made)
                if fresh is not made:  # the event loop was first
                    self._close(made)
                if limit not in recent:
                    fresh.touched = moment - _FORGET_S
        for entry, lease in list(self._leases.items()):
            if lease.end + 120 < now:
                del self._leases[entry]
                self._close(lease)

    def _sync(self) -> None:
        now = time.time()
        leases = [lease for lease in list(self._leases.values()) if lease.end > now - 1]
        wishes = [self._wish(lease, now) for lease in leases]
        try:
            grants, alive = self._counters.lease(wishes, now)
        except Exception as error:
            for lease, wish in zip(leases, wishes, strict=True):
                lease.granted = wish.keep  # nothing was given back
            self._miss(error)
            return
        if self._failing:
            _log.warning("limits: the store is reached again")
        self._failing, self._reached, self._alive = False, time.monotonic(), max(1, alive)
        for lease, wish in zip(leases, wishes, strict=True):
            grant = grants[wish.counter]
            granted = min(grant.granted, _aim(wish)) if wish.strict else grant.granted
            lease.granted, lease.free, lease.reported, lease.asked = granted, grant.free, wish.used, True

    def _miss(self, error: Exception) -> None:
        """The leases were not renewed; after a while this router keeps to its share."""
        if not self._failing and time.monotonic() - self._reached > _ALONE_AFTER_S:
            self._failing = True
            _log.error("limits: %s; this router keeps to its share, 1 of %d", _why(error), self._alive)

    def _wish(self, lease: _Lease, now: float) -> Wish:
        """Ask for a few times what was used since the last time; keep a little where there is plenty."""
        limit = lease.limit
        recent = lease.used - max(0, lease.reported)
        plenty = lease.free * 5 > limit.amount
        alone = self._alive == 1
        base = math.ceil(max(lease.free, 1) / (4 * self._alive)) if plenty or alone else int(recent > 0)
        if alone and not limit.strict:
            base = limit.amount  # nobody to share with
        lease.short = False
        need = min(lease.wanted, limit.amount) if time.monotonic() < lease.wanted_until else 0
        if self._closing:
            base = recent = need = 0
        ahead = max(base, 8 * recent)
        # What is given back is out of the event loop's reach before anybody else may have it; only then is the use read. Of a
        # strict limit it is given back the next time: the event loop may just be deciding by what there was until now.
        before = lease.granted
        lease.granted = min(before, lease.used + max(ahead, need), max(lease.used, limit.amount))
        used = lease.used
        slides = limit.period is Period.MINUTE
        window = window_of(limit.period, now)
        weight = window.weight if window.index == lease.window else 1.0
        return Wish(
            counter=_name(limit, lease.window),
            amount=limit.amount,
            used=used,
            ahead=ahead,
            keep=before if limit.strict else lease.granted,
            need=need,
            expires=min(lease.end + 86400, 4e9) if slides or limit.period is Period.NOW else lease.end + 40 * 86400,
            before=_name(limit, lease.window - 1) if slides else "",
            weight=weight if slides else 0.0,
            held=limit.period is Period.NOW,
            strict=limit.strict,
        )


def _aim(wish: Wish) -> int:
    """What a replica would have in all, were there enough."""
    return wish.used + max(wish.ahead, wish.need)


def _open_file(directory: Path, replica: str) -> UsageFile | None:
    try:
        return UsageFile(directory, replica)
    except OSError as error:
        _log.warning("limits: %s cannot be used (%s); what a killed router used last is lost", directory, error.strerror)
        return None


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else reason_of(error)


def _name(limit: Limit, window: int) -> str:
    return f"{limit.counter}|{window}"
