"""The router's live books: which targets there are and what is in flight where.

One owner, no locks, no clock of its own: every change is one synchronous call that swaps a frozen `Load`, so a `View` is
two references and a tuple copy at any number of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from router.identity.limit import Limit
from router.placement import breaker as breakers
from router.placement.booking import Booking
from router.placement.books import Calibration, Entry, Shared, TargetBook
from router.placement.gauges import explained, with_signals
from router.placement.health import after_failure, after_first_byte, after_gpus_read
from router.placement.peers import END, FIRST, SENT, News, Notice, Open, Peers
from router.placement.profile import EngineProfile
from router.placement.spending import Spending
from router.placement.targets import CLOUD, Kind, Load, Membership, Report, Target, View, Work
from router.placement.unseen import Unseen
from router.residency.label import Label

_SMOOTHING = 0.2
"""Weight of a new observation in the running estimates."""
_NOTHING_CACHED: Mapping[int, int] = {}
_NO_PEAKS = (0, 0)


class Fleet:
    """Targets and loads as one router sees them. Times are UNIX seconds, given by the caller.

    Args:
        daily_budget_usd: what may be spent outside per UTC day; infinite for no bound.
        profiles: what a step costs, by model id; models that are not there are predicted with a generic profile.
        goal: share of answers that are to meet their limits.
        tpot_s: the limit on seconds per answer token; infinite for none.
    """

    def __init__(
        self,
        daily_budget_usd: float,
        profiles: Mapping[str, EngineProfile] | None = None,
        goal: float = 0.95,
        tpot_s: float = float("inf"),
    ) -> None:
        self.calibration = Calibration(goal)
        self._profiles = dict(profiles or {})
        self._tpot_s = tpot_s
        self.news: News | None = None
        """What is to be told to other routers; None where there are none."""
        self._routers = Peers()
        self._books: dict[str, TargetBook] = {}
        self._shared: dict[str, Shared] = {}
        self._unseen = Unseen()
        self._peer_bookings: dict[tuple[str, int], Booking] = {}
        self._outputs: dict[str, float] = {}
        self._expected: dict[str, int] = {}
        self._membership = Membership(0, ())
        self._loads: list[Load] = []
        self._index: dict[str, int] = {}
        self._peaks: dict[str, tuple[int, int]] = {}
        self._spilling: frozenset[tuple[Label, tuple[str, ...]]] = frozenset()
        self.spending = Spending(daily_budget_usd)

    @property
    def membership(self) -> Membership:
        """The current targets."""
        return self._membership

    @property
    def places(self) -> Mapping[str, int]:
        """Incarnation to place in the membership."""
        return self._index

    def load_of(self, incarnation: str) -> Load:
        """The books on one target; empty ones for a target that is not known."""
        index = self._index.get(incarnation)
        return Load() if index is None else self._loads[index]

    def view(self, now: float, cached: Mapping[int, int] = _NOTHING_CACHED) -> View:
        """Everything a decision may see, frozen; `cached` is what its prompt finds cached, as `View` has it."""
        if self._unseen:
            self.presume_begun(now)
        calibration = self.calibration
        return View(
            self._membership,
            tuple(self._loads),
            self._spilling,
            self.spending.left(now),
            cached,
            self._expected,
            calibration.margin_s,
            calibration.pace_share,
            crowd_share=calibration.crowd_share,
        )

    def update(self, reports: Sequence[Report]) -> None:
        """Take the cluster's word for who is up, and its signals; books of those who stay are kept.

        A target that is missing is gone; an incarnation that was down and is reported with signals newer than its failure
        keeps its `down_until`, because a report only proves that its supervisor lives.
        """
        targets = tuple(report.target for report in reports)
        loads = []
        peaks = {}
        for report in reports:
            incarnation = report.target.incarnation
            known = self._index.get(incarnation)
            load = self._loads[known] if known is not None else self._fresh_load(report.target)
            before, since = self._peaks.get(incarnation, (0, 0))
            loads.append(with_signals(load, report.signals, max(before, since)))
            peaks[incarnation] = (since, load.inflight)
        self._peaks = peaks
        if targets != self._membership.targets:
            self._membership = Membership(self._membership.version + 1, targets)
            self._index = {target.incarnation: i for i, target in enumerate(targets)}
            self._forget_gone()
        self._loads = loads
        for index, load in enumerate(loads):
            if load.signals is not None:
                loads[index] = after_gpus_read(targets, loads, index, load.signals)

    def adopt(
        self,
        retarget: Callable[[Target], Target | None],
        daily_budget_usd: float,
        profiles: Mapping[str, EngineProfile] | None = None,
    ) -> None:
        """Take a new policy: every target as the new policy sees it (None: gone), the new budget and profiles. Books are kept.

        What was remembered per label is forgotten, because labels are masks over the old policy's names.
        """
        kept = [
            (seen, load)
            for target, load in zip(self._membership.targets, self._loads, strict=True)
            if (seen := retarget(target)) is not None
        ]
        self._membership = Membership(self._membership.version + 1, tuple(target for target, _ in kept))
        self._index = {target.incarnation: i for i, (target, _) in enumerate(kept)}
        self._profiles = dict(profiles or {})
        self._loads = [replace(load, profile=self._profile_of(seen)) for seen, load in kept]
        self._forget_gone()
        self._spilling = frozenset()
        self.spending.adopt(daily_budget_usd)

    def _forget_gone(self) -> None:
        gone = self._books.keys() - self._index.keys()
        for incarnation in gone:
            del self._books[incarnation]
        self._unseen.forget(gone)

    def _fresh_load(self, target: Target) -> Load:
        load = Load(profile=self._profile_of(target))
        return load if target.kind is Kind.CLOUD else TargetBook(self._shared_of(target)).told(load)

    def _profile_of(self, target: Target) -> EngineProfile | None:
        return next((self._profiles[model] for model in target.models if model in self._profiles), None)

    def book(
        self,
        target: Target,
        prompt_tokens: int,
        now: float,
        cost_usd: float = 0.0,
        work: Work | None = None,
        model: str = "",
        budget: Limit | None = None,
        whole: bool = False,
    ) -> Booking:
        """Enter one request that is about to be sent to `target`.

        Args:
            target: where it goes.
            prompt_tokens: the length of its prompt.
            now: UNIX time.
            cost_usd: what it is expected to cost outside; set aside until it ends.
            work: what the decision expects of it (`Choice.work`).
            model: the model id it asks for; how long its answers are is learned by it.
            budget: its key's own for what goes outside.
            whole: whether the answer comes in one piece, not as a stream.
        """
        booking = Booking(target.incarnation, prompt_tokens, now, whole)
        booking.model = model
        index = self._index.get(target.incarnation)
        if index is not None:
            load = self._loads[index]
            breaker, booking.probe = breakers.begin(load.breaker, now)
            self._loads[index] = replace(
                load,
                inflight=load.inflight + 1,
                unstarted=load.unstarted + 1,
                unstarted_tokens=load.unstarted_tokens + prompt_tokens,
                breaker=breaker,
            )
            if work is not None:
                if whole:
                    work = replace(work, whole=True)
                self._enter(index, booking, Entry(work, now, peers=False), now)
            before, since = self._peaks.get(target.incarnation, _NO_PEAKS)
            if load.inflight >= since:
                self._peaks[target.incarnation] = (before, load.inflight + 1)
        if cost_usd:
            booking.set_aside = self.spending.set_aside(now, cost_usd, budget)
        if self.news is not None and work is not None:
            booking.notice = self.news.sent(target.incarnation, work)
        return booking

    def first_byte(self, booking: Booking, now: float) -> None:
        """The first byte of the answer's body arrived."""
        index = self._place_of(booking)
        if booking.started or booking.ended or index is None:
            return
        booking.started = True
        if booking.notice and self.news is not None:
            self.news.first(booking.notice)
        if self._unseen and not booking.whole:
            self._begin_before(booking, now)
        load = self._loads[index]
        ttft_s, prefill_tps, breaker = load.ttft_s, load.prefill_tps, load.breaker
        if not booking.whole:  # else the end of the prefill is only presumed, which teaches nothing
            seconds = booking.seconds_until(now)
            ttft_s = _smooth(ttft_s, seconds)
            if load.unstarted <= 1 and booking.tokens >= 32:
                prefill_tps = _smooth(prefill_tps, booking.tokens / seconds)
            breaker = after_first_byte(self._membership.targets, self._loads, index, booking, now)
        self._loads[index] = load = replace(
            load,
            unstarted=load.unstarted - 1,
            unstarted_tokens=max(0, load.unstarted_tokens - booking.tokens),
            ttft_s=ttft_s,
            prefill_tps=prefill_tps,
            breaker=breaker,
        )
        entry, book = booking.entry, booking.book
        if entry is None or book is None:
            return
        self._loads[index] = book.started(load, entry, now)
        if not (entry.peers or booking.whole):
            self.calibration.first(now - entry.started_at, entry.work.ttft_s, now)
            if book.shared.has_drifted():
                self._tell_all(book.shared)

    def presume_begun(self, now: float) -> None:
        """Take prefills that nobody sees the end of to be done when they were predicted to be (`Unseen`).

        Else all requests whose answers come in one piece would seem to wait for theirs while they are written.
        """
        for booking, since in self._unseen.begun(now):
            self.first_byte(booking, since)

    def _begin_before(self, booking: Booking, since: float) -> None:
        """The prefill of a request is done since then, and so are those before it that nobody saw the end of."""
        for other in self._unseen.before(booking):
            self.first_byte(other, since)

    def end(
        self, booking: Booking, now: float, *, completed: bool, output_tokens: int = 0, cost_usd: float | None = None
    ) -> None:
        """The request left the target, completed or not. Calling it again changes nothing.

        Args:
            booking: what `book` answered.
            now: UNIX time.
            completed: whether the answer came to its end.
            output_tokens: its tokens, where they are known; lengths and paces are learned from them.
            cost_usd: what it did cost outside; None where nobody knows: what was set aside for it stays spent.
        """
        if booking.ended:
            return
        booking.ended = True
        if cost_usd is not None:
            self.spending.settle(booking.set_aside, cost_usd)
        if booking.notice and self.news is not None:
            self.news.end(booking.notice)
        index = self._place_of(booking)
        if index is None:
            return
        entry, book = booking.entry, booking.book
        if self._unseen and booking.whole and completed and output_tokens > 0 and entry is not None and book is not None:
            written_s = book.written_s(entry, self._loads[index], output_tokens)
            self._begin_before(booking, max(booking.started_at, now - written_s))
        load = self._loads[index]
        unstarted, tokens = load.unstarted, load.unstarted_tokens
        if not booking.started:
            unstarted, tokens = max(0, unstarted - 1), max(0, tokens - booking.tokens)
        breaker = breakers.release(load.breaker) if booking.probe else load.breaker
        timed = completed and not booking.delayed and (booking.entry is not None or not booking.whole)
        self._loads[index] = replace(
            load,
            inflight=max(0, load.inflight - 1),
            unstarted=unstarted,
            unstarted_tokens=tokens,
            service_s=_smooth(load.service_s, booking.slot_s(now)) if timed else load.service_s,
            failures=0 if completed else load.failures,
            down_until=0.0 if completed else load.down_until,
            breaker=breakers.succeeded(breaker, now, booking.started_at, booking.whole) if completed else breaker,
        )
        self._account_end(index, booking, load, now, completed, output_tokens)

    def noticed(self, notice: Notice, now: float, router: str = "") -> None:
        """A peer's request, booked as if it were ours. Notices out of order, or of targets we do not know, change nothing.

        Args:
            notice: what the peer tells.
            now: UNIX time.
            router: which peer; its numbers are its own.
        """
        name = router, notice.id
        if notice.event == SENT and notice.work is not None:
            index = self._index.get(notice.incarnation)
            if index is None or name in self._peer_bookings:
                return
            work, load = notice.work, explained(self._loads[index])
            booking = self._peer_bookings[name] = Booking(notice.incarnation, work.prompt_tokens, now, work.whole)
            self._loads[index] = replace(
                load,
                inflight=load.inflight + 1,
                unstarted=load.unstarted + 1,
                unstarted_tokens=load.unstarted_tokens + work.prompt_tokens,
            )
            self._enter(index, booking, Entry(work, now, peers=True), now)
            before, since = self._peaks.get(notice.incarnation, (0, 0))
            self._peaks[notice.incarnation] = (before, max(since, load.inflight + 1))
        elif notice.event == FIRST and (known := self._peer_bookings.get(name)) is not None:
            self.first_byte(known, now)
        elif notice.event == END and (over := self._peer_bookings.pop(name, None)) is not None:
            self.end(over, now, completed=False)

    def hear(self, router: str, notices: Sequence[Notice], now: float, rolls: Sequence[Open] = ()) -> list[int]:
        """What another router tells; an empty word says that it lives.

        Args:
            router: its name.
            notices: its news.
            now: UNIX time.
            rolls: its requests in flight, or some of them.

        Returns:
            Those on the rolls that it has not told of, as far as was heard.
        """
        missed = self._routers.missed(router, rolls) if rolls else []
        for told in (notices, missed):
            self._routers.hear(router, told, now)
            for notice in told:
                self.noticed(notice, now, router)
        return self._routers.unknown(router, rolls) if rolls else []

    def fade(self, now: float) -> None:
        """Let what was learned count less where no request tests it (`Belief`); to be called every few seconds.

        Not where something waits for its first token: that it does not come is news of its own.
        """
        self.calibration.fade(now)
        for index, target in enumerate(self._membership.targets):
            load = self._loads[index]
            if target.kind is CLOUD or load.unstarted or load.foreign_waiting or not (load.slowdown or load.pace_slowdown):
                continue
            book = self._books.get(target.incarnation) or TargetBook(self._shared_of(target))
            if book.is_fading(now):
                self._loads[index] = book.told(load, now)

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative: pauses and prefills end when they would have.

        An hour back, and every target that was busy would seem to be so for an hour.
        """
        for index, target in enumerate(self._membership.targets):
            load = self._loads[index]
            load = replace(load, down_until=load.down_until + by, breaker=breakers.clock_set(load.breaker, by))
            book = self._books.get(target.incarnation)
            self._loads[index] = load if book is None else book.clock_set(load, by)
        for shared in self._shared.values():
            shared.clock_set(by)
        self._routers.clock_set(by)
        self._unseen.clock_set(by)

    def forget_silent_peers(self, now: float) -> None:
        """Peers that have fallen silent will not say how their requests ended."""
        for router, notice in self._routers.silent(now):
            self.noticed(notice, now, router)

    def _enter(self, index: int, booking: Booking, entry: Entry, now: float) -> None:
        """Enter a request into the target's own books."""
        if entry.work.whole:
            self._unseen.add(booking, entry.work.ttft_s)
        book = self._books.get(booking.incarnation)
        if book is None:
            book = self._books[booking.incarnation] = TargetBook(self._shared_of(self._membership.targets[index]))
        booking.entry, booking.book = entry, book
        self._loads[index] = book.booked(self._loads[index], entry, now)

    def _place_of(self, booking: Booking) -> int | None:
        """Where a booking's target is in the membership; None where it is gone, or has been.

        One that came back has new books, which what was under way before is not in.
        """
        name, book = booking.incarnation, booking.book
        return self._index.get(name) if book is None or self._books.get(name) is book else None

    def _shared_of(self, target: Target) -> Shared:
        model = min(target.models, default="")
        shared = self._shared.get(model)
        if shared is None:
            shared = self._shared[model] = Shared()
        return shared

    def _tell_all(self, shared: Shared) -> None:
        """Books of replicas that were not asked lately follow what the others of their model have shown."""
        for index, target in enumerate(self._membership.targets):
            if target.kind is not Kind.CLOUD and self._shared_of(target) is shared:
                book = self._books.get(target.incarnation) or TargetBook(shared)
                self._loads[index] = book.told(self._loads[index])

    def _account_end(self, index: int, booking: Booking, before: Load, now: float, completed: bool, tokens: int) -> None:
        """What the end of a request changes beyond the counts; `before` is the target's load until then."""
        if completed and self._membership.targets[index].kind is CLOUD:
            self.calibration.answered(True)
        entry, book = booking.entry, booking.book
        if entry is None or book is None:
            return
        slowdown, pace_slowdown = before.slowdown, before.pace_slowdown
        if completed and not entry.peers:
            if tokens > 0:
                self._learn_output(booking.model, tokens)
            if tokens > 0 and not booking.delayed:
                if booking.whole:
                    slowdown, pace_slowdown = book.learned_whole(entry, before, tokens, now)
                else:
                    pace_slowdown = book.learned_pace(entry, before, tokens, now)
            if entry.first_at and not booking.delayed:
                kept = tokens < 2 or now - entry.first_at <= self._tpot_s * (tokens - 1)
                if tokens > 0:
                    book.shared.harm.ended(entry, kept)
                limit = entry.work.limit_s
                self.calibration.answered(kept and (not limit or entry.first_at - entry.started_at <= limit))
        self._loads[index] = book.ended(self._loads[index], entry, now, slowdown, pace_slowdown)
        if booking.whole and book.shared.has_drifted():
            self._tell_all(book.shared)

    def _learn_output(self, model: str, tokens: int) -> None:
        mean = self._outputs.get(model, 0.0)
        self._outputs[model] = mean + 0.02 * (tokens - mean) if mean else float(tokens)
        expected = int(self._outputs[model]) + 1
        if expected != self._expected.get(model):
            # Views made before keep the mapping they were given.
            self._expected = {**self._expected, model: expected}

    def failed(self, incarnation: str, now: float, reached: bool = False, since: float | None = None) -> None:
        """A target failed a request: it may be paused, or its breaker open (`health.after_failure`).

        Args:
            incarnation: which target.
            now: UNIX time.
            reached: whether a connection existed.
            since: when the failed request began; now, where it is not known.
        """
        index = self._index.get(incarnation)
        if index is None:
            return
        self._loads[index] = after_failure(self._membership.targets, self._loads, index, now, since=since, reached=reached)

    def set_saturated(self, label: Label, models: tuple[str, ...], saturated: bool) -> None:
        """Remember for the next decision whether the local targets of a label and models were saturated (hysteresis)."""
        if not saturated and not self._spilling:
            return
        scope = (label, models)
        if saturated != (scope in self._spilling):
            self._spilling = self._spilling | {scope} if saturated else self._spilling - {scope}


def _smooth(old: float, new: float) -> float:
    return new if old == 0.0 else old + _SMOOTHING * (new - old)
