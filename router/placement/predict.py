"""What would happen if this request went to that target now: first token, pace, and the price everybody pays for it.

The router's own books lead; an engine's gauges only add what others put there. All formulas grow with everything that is
booked on a target, so more load never makes one more attractive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import exp

import msgspec

from router.placement.profile import EngineProfile
from router.placement.targets import CLOUD, FRESH_S, LONG_S, Load, Target

GENERIC = EngineProfile("generic", 10e-3, 20e-6, 40e-6, 300, 50e-9, 1e-9, 0)
"""Assumed of an engine nobody has calibrated; the learned slowdowns correct it. No statement about its KV cache."""
DEFAULT_SERVICE_S = 2.0
"""Seconds a request holds a slot, assumed before anything was measured."""
DEFAULT_CLOUD_TTFT_S = 1.0
DEFAULT_OUTPUT_TOKENS = 200
KV_PRESSURE_FROM = 0.9
"""Above this KV-cache usage vLLM is about to preempt; where others work too, the prediction grows."""

_OWN_WORK = 1.75
"""Price of a second of prefill: computing a prompt again burns time that somebody else will miss."""
_DECODE_DELAY = 0.1
"""Price of a second of prefill for each sequence that decodes meanwhile, where the pace of the answers there is strained."""
_FRESH_DELAY = 0.5
"""The same for each answer that has just begun: if it is short, a slow stretch now is all of it."""
_CALM = 0.05
"""What a delay costs where it is not strained. Were it as dear everywhere, long prompts would gather on a few targets, away from
the answers of all others, and keep those busy without a pause: their own answers would be slow while others had time to spare."""
_QUEUE_DELAY = 2.0
"""Price of a second of prefill for each request that waits."""
_PACE = 0.03
"""Price of a second of decoding."""
_PACE_LIMIT = 1.0
"""Price of a second of decoding past `_PACE_FROM` of the pace limit."""
_LONG_PACE_LIMIT = 2.0
"""The same by the pace that the prefills of the last `LONG_S` make: bursts that fell on one target go elsewhere for a while."""
_PACE_FROM = 0.85
"""Part of the pace limit from which a pace is strained, and wholly so at the limit."""
_MOST_BUSY = 0.98
_SHORT_ANSWER = 40
"""Tokens of an answer that is short: prefill work is spread over the replicas as evenly as within the time that one takes. A
long answer evens a burst of prefills out by itself, a short one next to it breaks the pace limit."""
_LEAST_SPAN_S, _MOST_SPAN_S = 1.0, 15.0
_SOON_S = 0.5
"""Where much waits, predictions are off by so much all the time."""
_MOST_OVERDUE_S = 10.0
"""A wait that nobody knows the end of may send a request elsewhere; where there is no elsewhere it is no reason to refuse it."""
_MOST_HOLDERS = 32
"""Holders of a common beginning that are counted."""
_LEAST_COMMON = 512
"""Tokens of a beginning that several targets hold below which it is nobody's concern: they are the rest of a step."""
_USUAL_PACE_S = 0.05
"""Stands for the pace limit where none is set."""
_NOTHING: Mapping[int, int] = {}


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of any target. `tpot_s` is the limit on seconds per answer token, infinite for none."""

    prompt_tokens: int
    output_tokens: int
    tpot_s: float
    tau_s: float
    """Seconds over which prefill work given to a target slows its decodes down."""
    calm_s: float = math.inf
    """Seconds per token up to which the pace of answers is not strained; `strain` comes to each second beyond."""
    strain: float = 0.0
    common_tokens: int = 0
    """Leading prompt tokens that several targets hold (`common_beginning`)."""
    common_share: float = 0.0
    """The part of the price of computing those once more that the requests to come are worth."""


class Forecast(msgspec.Struct, frozen=True, gc=False):
    """Seconds: to the first token, of own prefill, per answer token; and the price of placing the request there.

    `added_s` are those by which the prefills booked there grow: less than its own where it shares their steps.
    """

    ttft_s: float
    prefill_s: float
    pace_s: float
    cost: float
    added_s: float = 0.0


def pressure(prefill_s: float, beside: int) -> float:
    """How hard a prefill presses on the answers beside it, in answers times seconds squared.

    It breaks the pace of those that are short against it: the longer it is, the more of them are, and the longer each is slowed.
    On simulated engines of two shapes and three traces the misses beside it grew with its seconds to the power of 1.5 to 2.

    Args:
        prefill_s: its seconds.
        beside: requests in flight at its target, others' too, without itself.
    """
    return prefill_s * prefill_s * beside


def expected_misses(load: Load, prefill_s: float) -> float:
    """How many answers at a target are expected to miss their pace for a prefill of so many seconds there, by those that did."""
    return load.harm * pressure(prefill_s, load.inflight + load.foreign)


def ask_of(prompt_tokens: int, output_tokens: int, tpot_s: float, cached: Mapping[int, int] = _NOTHING) -> Ask:
    """The ask of a request with this prompt and so many answer tokens expected; `cached`: prompt tokens that targets hold."""
    usual = tpot_s if tpot_s < 10.0 else _USUAL_PACE_S
    span = _SHORT_ANSWER * usual
    if not _LEAST_SPAN_S <= span <= _MOST_SPAN_S:
        span = _LEAST_SPAN_S if span < _LEAST_SPAN_S else _MOST_SPAN_S
    calm, strain = _PACE_FROM * usual, (1.0 - _CALM) / ((1.0 - _PACE_FROM) * usual)
    prompt = prompt_tokens or 1
    if len(cached) < 2 or prompt < _LEAST_COMMON or max(cached.values()) < _LEAST_COMMON:
        return Ask(prompt, output_tokens, tpot_s, span, calm, strain)
    common, share = common_beginning(cached)
    return Ask(prompt, output_tokens, tpot_s, span, calm, strain, min(common, prompt - 1), share)


def common_beginning(cached: Mapping[int, int]) -> tuple[int, float]:
    """The beginning of a prompt that several targets hold, in tokens, and the part of the price of one more copy that is not this
    request's to pay.

    What is on many targets is asked for all the time (a system prompt, a document everybody asks about), and a copy on another
    one serves many more requests. Were each to pay for it alone, a target without it would get none of them, however full
    the others are. With one holder, a conversation's, nobody else is going to ask.
    """
    tokens, share, most = 0, 0.0, 0.0
    for holders, depth in enumerate(sorted(cached.values(), reverse=True)[:_MOST_HOLDERS], 1):
        part = 1.0 - 1.0 / holders
        if depth * part > most:
            tokens, share, most = depth, part, depth * part
    return tokens, share


def forecast(target: Target, load: Load, ask: Ask, cached: int, now: float) -> Forecast:
    """Forecast one request on one target.

    Args:
        target: where.
        load: the books on it.
        ask: what the request asks.
        cached: leading prompt tokens this target holds.
        now: UNIX time in seconds.
    """
    if target.kind is CLOUD:
        ttft = load.ttft_s or DEFAULT_CLOUD_TTFT_S
        return Forecast(ttft, 0.0, 0.0, ttft)
    profile = load.profile or GENERIC
    throttle = load.throttle
    slowdown = (load.slowdown or 1.0) * throttle
    # Gauges can be stuck: requests that never made anybody wait are not there.
    waiting = load.foreign_waiting * load.foreign_weight
    decoding = load.inflight + load.foreign - load.unstarted - load.foreign_waiting
    queued = load.unstarted + waiting
    ahead = decoding + queued
    prompt, output, tau = ask.prompt_tokens, ask.output_tokens, ask.tau_s
    # The last prompt token is always computed.
    uncached = prompt - cached if cached < prompt else 1
    held, context = prompt - uncached, load.context_tokens
    prefill = slowdown * profile.prefill_s(uncached, held, decoding, context)
    wait = load.clear_at - now
    if wait < load.queue_s:
        wait = load.queue_s + _overdue_s(load, now)
    if load.silent_s:
        wait = max(wait, load.queue_s + min(load.silent_s, _MOST_OVERDUE_S))
    if waiting:
        wait += waiting * prefill
    kv_tokens = profile.kv_tokens
    if ahead >= (target.slots or profile.slots) or load.foreign or (kv_tokens and load.kv_tokens + uncached + output > kv_tokens):
        # Those ahead wait for room as well, and their prefills are computed as it comes free.
        room = _wait_for_room(target, profile, load, ahead, uncached + output, now)
        if wait < room:
            wait = room
    # Seconds per answer token while the share `busy` of the engine's time goes into steps that are full of prefill.
    per_context = profile.per_context
    step = profile.overhead + per_context * (load.context_tokens + prompt)
    own_s = (decoding + 1) * profile.per_token if decoding < profile.knee else profile.tokens_s(decoding + 1)
    decode = (load.pace_slowdown * throttle or slowdown) * (step + own_s)
    chunk = slowdown * (step + profile.tokens_s(profile.step_tokens))
    since = now - load.work_at
    recent = load.work_s * exp(-since / tau) if since > 0 else load.work_s
    busy = (recent + prefill) / tau
    if busy > _MOST_BUSY:
        busy = _MOST_BUSY
    pace = decode if chunk <= decode else 1.0 / (busy / chunk + (1.0 - busy) / decode)
    # Behind other prefills a short prompt takes the rest of a step that is computed anyway.
    booked = prefill
    if wait > 0.0:
        added = slowdown * profile.added_s(uncached, held, decoding, context)
        booked = added if wait > prefill - added else prefill - wait
    delayed = _DECODE_DELAY * decoding
    if load.fresh:
        age = now - load.fresh_at
        # As in the books: while prefills run there, answers do not age.
        delayed += _FRESH_DELAY * (load.fresh if age <= 0.0 or load.unstarted else load.fresh * exp(-age / FRESH_S))
    strain = _CALM + (pace - ask.calm_s) * ask.strain if pace > ask.calm_s else _CALM
    price = _OWN_WORK + _QUEUE_DELAY * queued + delayed * (strain if strain < 1.0 else 1.0)
    priced = prefill
    if held < ask.common_tokens:
        rest = slowdown * profile.prefill_s(prompt - ask.common_tokens, ask.common_tokens, decoding, context)
        priced -= ask.common_share * (prefill - rest)
    # It comes in the middle of a step, on average.
    under_way = 0.5 * decode if decoding else 0.0
    ttft = wait + booked + under_way
    cost = ttft + priced * price + _PACE * output * (pace + per_context * prompt * decoding)
    bearable = _PACE_FROM * ask.tpot_s
    if pace > bearable:
        cost += _PACE_LIMIT * output * (pace - bearable)
    # The mean pace is below that of steps weighed by their number, which is cheaper to tell.
    if (load.long_work_s + prefill) * (chunk - decode) > (bearable - decode) * LONG_S and chunk > decode:
        lately = load.long_work_s * exp(-since / LONG_S) if since > 0 else load.long_work_s
        busy = min(_MOST_BUSY, (lately + prefill) / LONG_S)
        pace_long = 1.0 / (busy / chunk + (1.0 - busy) / decode)
        if pace_long > bearable:
            cost += _LONG_PACE_LIMIT * output * (pace_long - bearable)
    return Forecast(ttft, prefill, pace, cost, booked)


def rank_costs(loads: Sequence[Load], places: Mapping[int, int], ask: Ask, cached: Mapping[int, int], now: float) -> list[float]:
    """A rough cost for each of many targets, in a fraction of a forecast's time: good enough to say which are worth one.

    Like the forecast's cost it grows with everything that is booked on a target.

    Args:
        loads: the books of all targets.
        places: which of them, by index, and their places in the answer: 0, 1, 2 and so on.
        ask: what the request asks.
        cached: leading prompt tokens held, by index.
        now: UNIX time in seconds.
    """
    common, share, calm, tau = ask.common_tokens, ask.common_share, ask.calm_s, ask.tau_s
    prompt, slowing = ask.prompt_tokens, _PACE * ask.output_tokens / tau
    known: EngineProfile | None = None
    profile = GENERIC
    alone = profile.prefill_s(prompt)
    full = profile.tokens_s(profile.step_tokens)
    slow_s = slowing * profile.overhead
    costs = []
    own = 1.0 + _OWN_WORK
    for load, depth in zip(map(loads.__getitem__, places), map(cached.get, places), strict=True):
        held = depth or 0
        if load.profile is not known:
            known = load.profile
            profile = known or GENERIC
            alone = profile.prefill_s(prompt)
            full = profile.tokens_s(profile.step_tokens)
            slow_s = slowing * profile.overhead
        wait = load.clear_at - now
        queue = load.queue_s
        slowdown = (load.slowdown or 1.0) * load.throttle
        known_tokens = held + share * (common - held) if held < common else held
        prefill = slowdown * alone * (1.0 - known_tokens / prompt if known_tokens < prompt else 0.0)
        ahead = load.inflight + load.foreign
        strain = _CALM
        if load.work_s:
            since = now - load.work_at
            busy = (prefill + load.work_s * (exp(-since / tau) if since > 0 else 1.0)) / tau
            decode = profile.overhead + profile.per_context * load.context_tokens + profile.per_token * ahead
            pace = decode + full if busy >= 1.0 else 1.0 / (busy / (decode + full) + (1.0 - busy) / decode)
            if pace > calm:
                strain += (pace - calm) * ask.strain
        price = own + _QUEUE_DELAY * (load.unstarted + load.foreign_waiting * load.foreign_weight)
        price += (_DECODE_DELAY * ahead + _FRESH_DELAY * load.fresh) * (strain if strain < 1.0 else 1.0)
        if wait < queue:
            wait = queue + _overdue_s(load, now)
        if load.silent_s:
            wait = max(wait, queue + min(load.silent_s, _MOST_OVERDUE_S))
        costs.append(prefill * price + slowdown * slow_s * load.work_s + wait)
    return costs


def _overdue_s(load: Load, now: float) -> float:
    """For how long the first of those that wait is likely to be overdue, where it is.

    As long again as it has been, as of any wait whose end nobody knows: else a target that has come to a stop would look like an
    idle one.
    """
    if not load.clear_at:
        return 0.0
    overdue_s = load.queue_s - (load.clear_at - now) - _SOON_S
    return 0.0 if overdue_s < 0.0 else overdue_s if overdue_s < _MOST_OVERDUE_S else _MOST_OVERDUE_S


def _wait_for_room(target: Target, profile: EngineProfile, load: Load, ahead: float, tokens: int, now: float) -> float:
    """Seconds until a sequence slot, and room in the KV cache, are free; what is in flight ends one by one.

    A slot is held for as long as it was before, but for no less than those that have one have held it already: what is in
    flight is on average half as old as it will be, and more where answers differ.
    """
    slots = target.slots or profile.slots
    service = load.service_s or DEFAULT_SERVICE_S
    if load.begun_at and now - load.begun_at > service:
        service = now - load.begun_at
    wait = 0.0
    if ahead >= slots:
        wait = (ahead - slots + 1) * service / slots
    if profile.kv_tokens and load.kv_tokens + tokens > profile.kv_tokens:
        missing = min(1.0, (load.kv_tokens + tokens - profile.kv_tokens) / profile.kv_tokens)
        wait = max(wait, missing * service)
    signals = load.signals
    if signals is not None and load.foreign and signals.kv_usage > KV_PRESSURE_FROM:
        share = (signals.kv_usage - KV_PRESSURE_FROM) / (1 - KV_PRESSURE_FROM)
        wait += share * service
    return wait
