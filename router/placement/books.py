"""The part of the books that predictions read: prefill seconds booked ahead, tokens held, and what is learned from outcomes.

Kept per target incarnation, changed by booking, first byte and end; each change answers the target's frozen `Load` anew.
"""

from __future__ import annotations

from math import exp

from msgspec.structs import replace

from router.placement.belief import Belief
from router.placement.predict import GENERIC, pressure
from router.placement.profile import EngineProfile
from router.placement.targets import FRESH_S, LONG_S, Load, Work

_STEADY = 0.05
_LEAST_PREFILLS = 0.5
"""First tokens teach how fast prefills go where these are at least so much of the wait that was predicted."""
_TELLING_TOKENS = 16
"""Shorter answers do not teach the pace."""
_HARM_MEMORY = 0.998
"""What is left of an answer's weight after the next one, where the harm of prefills is learned: it is that of the last 500."""
_THERE, _NOT_THERE = 0.5, 0.1
"""Weights of a first token that teaches whether the foreign requests which wait by an engine's gauges are there: a wait shows
that they are, a short one may have been luck."""


class Entry:
    """One request's share of a target's books."""

    __slots__ = (
        "context",
        "first_at",
        "first_clock",
        "foreign_s",
        "kv_tokens",
        "peers",
        "prefills_s",
        "pressure",
        "slowdown",
        "started_at",
        "work",
    )

    def __init__(self, work: Work, now: float, peers: bool) -> None:
        self.work = work
        self.context = work.prompt_tokens + work.output_tokens // 2
        self.kv_tokens = work.prompt_tokens - work.cached_tokens + work.output_tokens
        """KV-cache tokens it takes that were not there before."""
        self.started_at = now
        self.first_at = 0.0
        self.first_clock = 0.0
        self.peers = peers
        """True when another router sent it and told us."""
        self.prefills_s = 0.0
        """Seconds of prefill, its own and those booked before it: what the rest of its predicted first token waits for is a slot,
        or others' requests."""
        self.foreign_s = 0.0
        """Seconds that the foreign requests which waited there, by the gauges, should have made it wait."""
        self.slowdown = 1.0
        """The slowdown it was predicted with: many answers later, when its first byte teaches, another one may hold."""
        self.pressure = 0.0
        """What its prefill puts on the answers that were there before it (`router.placement.predict.pressure`)."""


class Harm:
    """How many answers miss their pace per unit of pressure that prefills put on them: of some hundred answers, all together.

    Which prefill broke which answer is not asked. Over many, both are counted where they happened.
    """

    __slots__ = ("_missed", "_pressure", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._missed = 0.0
        self._pressure = 0.0

    def ended(self, entry: Entry, kept: bool) -> None:
        """An answer whose tokens are known ended, within the limit on its pace or not."""
        self._missed = _HARM_MEMORY * self._missed + (0.0 if kept else 1.0)
        self._pressure = _HARM_MEMORY * self._pressure + entry.pressure
        # One miss is chance, and the first to come has little pressure to be divided by.
        self.value = max(0.0, self._missed - 1.0) / self._pressure if self._pressure > 0.0 else 0.0


class Shared:
    """What all replicas of one model have in common: a replica nobody has tried yet is taken to be like the others."""

    __slots__ = ("_told", "harm", "pace", "prefill")

    def __init__(self) -> None:
        self.harm = Harm()
        self.prefill = Belief(_STEADY / 8)
        self.pace = Belief(_STEADY / 8)
        self._told = (1.0, 1.0)

    def has_drifted(self) -> bool:
        """True when either factor has moved by a tenth since this was last true: time to tell all books of the model."""
        prefill, pace = self.prefill.value, self.pace.value
        told_prefill, told_pace = self._told
        drifted = abs(prefill / told_prefill - 1.0) > 0.1 or abs(pace / told_pace - 1.0) > 0.1
        if drifted:
            self._told = prefill, pace
        return drifted

    def clock_set(self, by: float) -> None:
        """The clock was set ahead by so many seconds, back if negative."""
        for belief in (self.prefill, self.pace):
            belief.at += by


class TargetBook:
    """The books of one target. Every change takes the target's `Load` and answers the one that follows."""

    __slots__ = (
        "_begun",
        "_begun_sum",
        "_clock",
        "_context",
        "_fresh",
        "_fresh_at",
        "_front_since",
        "_kv",
        "_long_work_s",
        "_pace",
        "_prefill",
        "_queue",
        "_queued_s",
        "_work_at",
        "_work_s",
        "shared",
    )

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._prefill = Belief(_STEADY)
        self._pace = Belief(_STEADY)
        self._queue: dict[Entry, float] = {}
        self._queued_s = 0.0
        self._begun: dict[Entry, None] = {}
        self._begun_sum = 0.0
        self._front_since = 0.0
        self._context = 0
        self._kv = 0
        self._work_s = 0.0
        self._work_at = 0.0
        self._long_work_s = 0.0
        self._fresh = 0.0
        self._fresh_at = 0.0
        self._clock = 0.0

    def booked(self, load: Load, entry: Entry, now: float) -> Load:
        """A request is about to be sent."""
        work = entry.work
        entry.pressure = pressure(work.prefill_s, load.inflight + load.foreign - 1)
        entry.slowdown = load.slowdown or 1.0
        entry.foreign_s = load.foreign_waiting * work.prefill_s
        entry.prefills_s = load.wait_s(now) + work.prefill_s
        if not self._queue:
            self._age(now)
            self._front_since = now
        self._queue[entry] = work.prefill_s
        self._queued_s += work.prefill_s
        self._context += entry.context
        self._kv += entry.kv_tokens
        since = now - self._work_at
        if since > 0.0:
            self._work_s *= exp(-since / work.tau_s)
            self._long_work_s *= exp(-since / LONG_S)
            self._work_at = now
        self._work_s += work.prefill_s
        self._long_work_s += work.prefill_s
        return self._onto(load, load.slowdown, load.pace_slowdown)

    def started(self, load: Load, entry: Entry, now: float) -> Load:
        """Its first byte came back: its prefill, and with FCFS all before it, are done. Our own teach how slow the target is."""
        entry.first_at = now
        self._begun[entry] = None
        self._begun_sum += now
        self._age(now)
        entry.first_clock = self._clock
        self._fresh += 1.0
        self._drop(entry, now)
        seen = not (entry.peers or entry.work.whole)
        if entry.foreign_s and seen:
            load = replace(load, foreign_weight=self._believed(entry, load, now))
        slowdown = self._learned_first(entry, load, now) if seen else load.slowdown
        return self._onto(load, slowdown, load.pace_slowdown)

    def ended(self, load: Load, entry: Entry, now: float, slowdown: float, pace_slowdown: float) -> Load:
        """It left the target; the slowdowns are what was learned from it (`learned_pace`, `learned_whole`)."""
        self._age(now)
        self._drop(entry, now)
        if entry.first_at:
            del self._begun[entry]
            self._begun_sum = self._begun_sum - entry.first_at if self._begun else 0.0
            self._fresh = max(0.0, self._fresh - exp((entry.first_clock - self._clock) / FRESH_S))
        self._context -= entry.context
        self._kv -= entry.kv_tokens
        return self._onto(load, slowdown, pace_slowdown)

    def clock_set(self, load: Load, by: float) -> Load:
        """The clock was set ahead by so many seconds, back if negative: what was noted by it is noted anew.

        What begins before and ends after is learned from as if it had taken so much longer or shorter, within the bounds of any
        odd observation.
        """
        for belief in (self._prefill, self._pace):
            belief.at += by
        self._front_since += by
        self._work_at += by
        self._fresh_at += by
        for entry in self._queue:
            entry.started_at += by
        for entry in self._begun:
            entry.started_at += by
            entry.first_at += by
        self._begun_sum += by * len(self._begun)
        return self._onto(load, load.slowdown, load.pace_slowdown)

    def _age(self, now: float) -> None:
        """Bring the count of fresh answers to the present. While prefills run they gain nothing on their limit."""
        since = now - self._fresh_at
        if since > 0.0:
            if not self._queue:
                self._fresh *= exp(-since / FRESH_S)
                self._clock += since
            self._fresh_at = now

    def _believed(self, entry: Entry, load: Load, now: float) -> float:
        """How far to believe that foreign requests wait there, after one of ours that should have waited for them."""
        shown = min(1.0, max(0.0, now - entry.started_at - entry.prefills_s) / entry.foreign_s)
        change = shown - load.foreign_weight
        return load.foreign_weight + (_THERE if change > 0.0 else _NOT_THERE) * change

    def _learned_first(self, entry: Entry, load: Load, now: float) -> float:
        """The slowdown after a first byte of our own, by the wait it was given and the wait it had.

        A wait for a slot, for KV blocks or for others' requests says nothing of how fast prefills go. It does not shrink with
        what is learned either: where it is most of the wait, each one that was shorter would lower the slowdown, down to nothing.
        """
        implied = entry.slowdown * (now - entry.started_at) / max(1e-4, entry.work.ttft_s)
        if entry.prefills_s < _LEAST_PREFILLS * entry.work.ttft_s and not (
            # An engine believed to be fast without measure has next to no prefills: what its profile says of them counts.
            implied > entry.slowdown < 1.0 and entry.prefills_s >= entry.slowdown * (entry.work.ttft_s - entry.prefills_s)
        ):
            return load.slowdown
        return self._prefill.observe(implied, self.shared.prefill, now)

    def learned_pace(self, entry: Entry, load: Load, tokens: int, now: float) -> float:
        """The decode slowdown after an answer of so many tokens; the profile's step for the present load is the measure."""
        profile = load.profile
        if profile is None or tokens < _TELLING_TOKENS or not entry.first_at:
            return load.pace_slowdown
        seen = (now - entry.first_at) / (tokens - 1)
        return self._pace.observe(seen / _usual_pace_s(profile, load, entry), self.shared.pace, now)

    def written_s(self, entry: Entry, load: Load, tokens: int) -> float:
        """Seconds that an answer of so many tokens should have taken from its first one on."""
        return (tokens - 1) * (load.pace_slowdown or entry.slowdown) * _usual_pace_s(load.profile or GENERIC, load, entry)

    def learned_whole(self, entry: Entry, load: Load, tokens: int, now: float) -> tuple[float, float]:
        """Both slowdowns after an answer of so many tokens that came in one piece.

        How long it took says how much slower than predicted it all was. That is the pace's where writing should have been the
        longer part, and the prefill's where that was; with a generic profile there is one slowdown for both.
        """
        slowdown, pace_slowdown, profile = load.slowdown, load.pace_slowdown, load.profile
        written_s = self.written_s(entry, load, tokens)
        ratio = (now - entry.started_at) / max(1e-4, entry.work.ttft_s + written_s)
        if profile is not None and written_s > entry.work.ttft_s:
            if tokens >= _TELLING_TOKENS:
                pace_slowdown = self._pace.observe((pace_slowdown or entry.slowdown) * ratio, self.shared.pace, now)
        elif profile is None or entry.prefills_s >= _LEAST_PREFILLS * entry.work.ttft_s:
            slowdown = self._prefill.observe(entry.slowdown * ratio, self.shared.prefill, now)
        return slowdown, pace_slowdown

    def told(self, load: Load, now: float = 0.0) -> Load:
        """With the slowdowns to go by; 0 where nothing was observed on any replica of the model.

        Args:
            load: the target's.
            now: UNIX time, where beliefs that nobody has tested lately are to count less.
        """
        shared = self.shared
        return replace(
            load,
            slowdown=self._prefill.beside(shared.prefill, now) if shared.prefill.seen else 0.0,
            pace_slowdown=self._pace.beside(shared.pace, now) if shared.pace.seen else 0.0,
            harm=shared.harm.value,
        )

    def is_fading(self, now: float) -> bool:
        """Whether something that was learned here was not tested for a while."""
        shared = self.shared
        return any(belief.is_stale(now) for belief in (self._prefill, self._pace, shared.prefill, shared.pace))

    def _drop(self, entry: Entry, now: float) -> None:
        seconds = self._queue.pop(entry, None)
        if seconds is None:
            return
        self._queued_s = self._queued_s - seconds if self._queue else 0.0
        # Something of this queue has just been finished, so what is now in front begins now.
        self._front_since = now

    def _onto(self, load: Load, slowdown: float, pace_slowdown: float) -> Load:
        behind = 0.0
        for front in self._queue.values():
            if self._queued_s > front:
                behind = self._queued_s - front
            break
        # Each field by its name: from a dictionary with `**` the same takes six times as long.
        return replace(
            load,
            clear_at=self._front_since + self._queued_s if self._queue else 0.0,
            queue_s=behind,
            context_tokens=self._context,
            kv_tokens=self._kv,
            work_s=self._work_s,
            work_at=self._work_at,
            long_work_s=self._long_work_s,
            fresh=self._fresh,
            fresh_at=self._fresh_at,
            slowdown=slowdown,
            pace_slowdown=pace_slowdown,
            harm=self.shared.harm.value,
            begun_at=self._begun_sum / len(self._begun) if self._begun else 0.0,
        )


def _usual_pace_s(profile: EngineProfile, load: Load, entry: Entry) -> float:
    """Seconds per answer token by the profile, for the present load. Prefills of others stretch steps as well: what they took is
    not the decode step's slowness."""
    decoding = max(1, load.inflight - load.unstarted)
    busy = min(0.8, load.work_s / entry.work.tau_s)
    step = profile.step_s(decoding, load.context_tokens)
    full = profile.step_s(profile.step_tokens, load.context_tokens)
    return load.throttle / (busy / max(full, step) + (1.0 - busy) / step)


_STRICTEST, _LAXEST = 0.4, 1.4
"""Bounds on the share of the pace limit: at the lower one next to nothing fits, at the upper one a step full of prefill does."""
_LEAST_CARE, _MOST_CARE = 0.5, 1.1
"""Bounds on the care for the pace of others: at the lower one nothing waits for their sake."""
_CARE_STEP = 0.04
"""What a missed limit adds to the care; one that was kept takes away as much less as keeps the balance."""
_MOST_LATE = 1.0
"""Requests that became late as they waited are remembered up to so many: an old burst of them says nothing of now."""
_UNTESTED_S = 60.0
_SENT_MISSES = 0.2
"""Of the misses that the goal allows, the part left to what was sent; the rest is for those that waited too long for its sake."""


class Calibration:
    """What one router learns over all its targets: the margin of its predictions, and how strict to be with the pace.

    `margin_s` follows the quantile of (actual - predicted) first tokens that `keep` of them stay below (a conformal margin,
    tracked by stochastic approximation). `pace_share` is raised after every answer that met its limits and lowered after one
    that did not, so that in the long run the share `goal` meets them (Robbins-Monro). `crowd_share` is the same for requests
    that may not leave, kept as its inverse (`care`).
    """

    def __init__(self, goal: float, keep: float = 0.9) -> None:
        self.margin_s = 0.0
        self.pace_share = 0.85
        self.crowd_share = 0.0
        self._care = _LEAST_CARE
        self._late = 0.0
        self._allowed = _SENT_MISSES * (1.0 - goal)
        self._goal = goal
        self._keep = keep
        self._scale = 0.05
        self._first_at = 0.0

    def first(self, actual_s: float, predicted_s: float, now: float) -> None:
        """A first token came."""
        self._first_at = now
        error = actual_s - predicted_s
        self._scale += 0.02 * (min(abs(error), 10 * self._scale) - self._scale)
        step = 0.1 * self._scale
        margin_s = self.margin_s + step * (self._keep if error > self.margin_s else self._keep - 1.0)
        # By Markov's inequality the quantile is no more than that: what one stall has taught would else take days to unlearn, in
        # steps that become small as soon as predictions are right again.
        self.margin_s = min(margin_s, self._scale / (1.0 - self._keep))

    def fade(self, now: float) -> None:
        """Where no first token tests the margin it is halved every minute: else one too wide for anything to fit would stay."""
        if not 0.0 <= now - self._first_at <= _UNTESTED_S:
            self._first_at = now
            self.margin_s, self._scale = 0.5 * self.margin_s, 0.5 * self._scale

    def answered(self, met: bool) -> None:
        """An answer ended within its limits, or not."""
        share = self.pace_share + 0.01 * ((1.0 if met else 0.0) - self._goal)
        self.pace_share = share if _STRICTEST <= share <= _LAXEST else min(_LAXEST, max(_STRICTEST, share))
        late = min(self._late, 1.0 - self._goal)
        self._late -= late
        self._take_care((0.0 if met else 1.0) - self._allowed - late)

    def waited_too_long(self, count: int) -> None:
        """So many requests became late while they waited.

        Counted with the answers, up to the share of misses that the goal allows: where more are late the cluster is full, and
        to care less would help nobody.
        """
        self._late = min(_MOST_LATE, self._late + count)

    def _take_care(self, change: float) -> None:
        care = min(_MOST_CARE, max(_LEAST_CARE, self._care + _CARE_STEP * change))
        self._care = care
        self.crowd_share = 1.0 / care if care > _LEAST_CARE else 0.0
