"""What would happen if this request went to that target now: first token, pace, and the price everybody pays for it.

The router's own books lead; an engine's gauges only add what others put there. All formulas grow with everything that is
booked on a target, so more load never makes one more attractive.
"""

from __future__ import annotations

from math import exp

import msgspec

from router.placement.profile import EngineProfile
from router.placement.targets import Kind, Load, Target

GENERIC = EngineProfile("generic", 10e-3, 20e-6, 40e-6, 300, 50e-9, 1e-9, 0)
"""Assumed of an engine nobody has calibrated; the learned slowdowns correct it. No statement about its KV cache."""
DEFAULT_SERVICE_S = 2.0
"""Seconds a request holds a slot, assumed before anything was measured."""
DEFAULT_CLOUD_TTFT_S = 1.0
DEFAULT_OUTPUT_TOKENS = 200
KV_PRESSURE_FROM = 0.9
"""Above this KV-cache usage vLLM is about to preempt; where others work too, the prediction grows."""

_OWN_WORK = 1.0
"""Price of a second of prefill: computing a prompt again burns time that somebody else will miss."""
_DECODE_DELAY = 0.05
"""Price of a second of prefill for each sequence that decodes meanwhile."""
_QUEUE_DELAY = 0.5
"""Price of a second of prefill for each request that waits."""
_PACE = 0.15
"""Price of a second of decoding."""
_PACE_LIMIT = 2.0
"""Price of a second of decoding past `_PACE_FROM` of the pace limit."""
_PACE_FROM = 0.85
_USUAL_PACE_S = 0.05
"""Stands for the pace limit where none is set."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of any target. `tpot_s` is the limit on seconds per answer token, infinite for none."""

    prompt_tokens: int
    output_tokens: int
    tpot_s: float
    tau_s: float
    """Seconds over which prefill work given to a target slows its decodes down."""


class Forecast(msgspec.Struct, frozen=True, gc=False):
    """Seconds: to the first token, of own prefill, per answer token; and the price of placing the request there."""

    ttft_s: float
    prefill_s: float
    pace_s: float
    cost: float


def ask_of(prompt_tokens: int, output_tokens: int, tpot_s: float) -> Ask:
    """The ask of a request with this prompt and so many answer tokens expected."""
    usual = tpot_s if tpot_s < 10.0 else _USUAL_PACE_S
    return Ask(max(1, prompt_tokens), output_tokens, tpot_s, min(15.0, max(2.0, 0.6 * output_tokens * usual)))


def forecast(target: Target, load: Load, ask: Ask, cached: int, now: float) -> Forecast:
    """Forecast one request on one target.

    Args:
        target: where.
        load: the books on it.
        ask: what the request asks.
        cached: leading prompt tokens this target holds.
        now: UNIX time in seconds.
    """
    if target.kind is Kind.CLOUD:
        ttft = load.ttft_s or DEFAULT_CLOUD_TTFT_S
        return Forecast(ttft, 0.0, 0.0, ttft)
    profile = load.profile or GENERIC
    slowdown = load.slowdown or 1.0
    queued = load.unstarted + load.foreign_waiting
    decoding = load.inflight - load.unstarted + load.foreign - load.foreign_waiting
    context = load.context_tokens
    # The last prompt token is always computed.
    uncached = max(1, ask.prompt_tokens - cached)
    prefill = slowdown * profile.prefill_s(uncached, ask.prompt_tokens - uncached, decoding, context)
    wait = load.clear_at - now
    if wait < load.queue_s:
        wait = load.queue_s
    if load.foreign_waiting:
        wait += load.foreign_waiting * (load.ttft_s or prefill)
    wait += _wait_for_room(target, profile, load, uncached + ask.output_tokens)
    pace = _pace(profile, load, slowdown, decoding + 1, context + ask.prompt_tokens, prefill, ask, now)
    output = ask.output_tokens
    cost = wait + prefill * (1.0 + _OWN_WORK + _DECODE_DELAY * decoding + _QUEUE_DELAY * queued)
    cost += _PACE * output * (pace + profile.per_context * ask.prompt_tokens * decoding)
    if pace > _PACE_FROM * ask.tpot_s:
        cost += _PACE_LIMIT * output * (pace - _PACE_FROM * ask.tpot_s)
    return Forecast(wait + prefill, prefill, pace, cost)


def cheapest_possible(load: Load, alone_s: float, now: float) -> float:
    """A bound no forecast's cost is below, in a fraction of its time.

    Args:
        load: the books on a target with none of the prompt in its cache.
        alone_s: the prefill on an idle engine of its profile.
        now: UNIX time in seconds.
    """
    queued = load.unstarted + load.foreign_waiting
    decoding = load.inflight + load.foreign - queued
    wait = load.clear_at - now
    if wait < load.queue_s:
        wait = load.queue_s
    return wait + (load.slowdown or 1.0) * alone_s * (1.0 + _OWN_WORK + _DECODE_DELAY * decoding + _QUEUE_DELAY * queued)


def _pace(
    profile: EngineProfile, load: Load, slowdown: float, decoding: int, context: int, prefill: float, ask: Ask, now: float
) -> float:
    """Seconds per answer token while the share `busy` of the engine's time goes into steps that are full of prefill."""
    attended = context * profile.per_context
    step = profile.overhead + attended
    decode = decoding * profile.per_token
    if decoding > profile.knee:
        decode += (decoding - profile.knee) * (profile.per_token_full - profile.per_token)
    full = profile.knee * profile.per_token + max(0, profile.step_tokens - profile.knee) * profile.per_token_full
    decode_step = (load.pace_slowdown or slowdown) * (step + decode)
    chunk_step = max(decode_step, slowdown * (step + full))
    since = now - load.work_at
    recent = load.work_s * exp(-since / ask.tau_s) if since > 0 else load.work_s
    busy = min(0.98, (recent + prefill) / ask.tau_s)
    return 1.0 / (busy / chunk_step + (1.0 - busy) / decode_step)


def _wait_for_room(target: Target, profile: EngineProfile, load: Load, tokens: int) -> float:
    """Seconds until a sequence slot, and room in the KV cache, are free; what is in flight ends one by one."""
    slots = target.slots or profile.slots
    ahead = load.inflight + load.foreign
    wait = 0.0
    if ahead >= slots:
        wait = (ahead - slots + 1) * (load.service_s or DEFAULT_SERVICE_S) / slots
    if profile.kv_tokens and load.kv_tokens + tokens > profile.kv_tokens:
        missing = min(1.0, (load.kv_tokens + tokens - profile.kv_tokens) / profile.kv_tokens)
        wait = max(wait, missing * (load.service_s or DEFAULT_SERVICE_S))
    signals = load.signals
    if signals is not None and load.foreign and signals.kv_usage > KV_PRESSURE_FROM:
        share = (signals.kv_usage - KV_PRESSURE_FROM) / (1 - KV_PRESSURE_FROM)
        wait += share * (load.service_s or DEFAULT_SERVICE_S)
    return wait
