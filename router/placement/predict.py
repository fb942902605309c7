"""How long until the first token, if this request went to that target now.

A deliberately small model: the wait for a free sequence slot, plus the prefill work already queued there, plus the
request's own prefill. The router's own books lead; the engine's gauges only add what others put there (`Load.foreign`).
"""

from __future__ import annotations

from router.placement.targets import Kind, Load, Target

DEFAULT_SLOTS = 256
"""vLLM's own default for `--max-num-seqs`."""
DEFAULT_PREFILL_TPS = 4000.0
"""Prompt tokens per second assumed before anything was measured."""
DEFAULT_SERVICE_S = 2.0
"""Seconds a request holds a slot, assumed before anything was measured."""
DEFAULT_CLOUD_TTFT_S = 1.0
KV_PRESSURE_FROM = 0.9
"""Above this KV-cache usage vLLM is about to preempt; the prediction grows towards doubling."""


def predict_ttft(target: Target, load: Load, prompt_tokens: int) -> float:
    """Predicted seconds to the first token.

    Args:
        target: where.
        load: the books on it.
        prompt_tokens: this request's prompt length.

    Returns:
        Seconds; grows with every request, running or queued, that is ahead on the same target.
    """
    if target.kind is Kind.CLOUD:
        return load.ttft_s or DEFAULT_CLOUD_TTFT_S
    rate = max(load.prefill_tps or DEFAULT_PREFILL_TPS, 1.0)
    ahead = load.inflight + load.foreign
    seconds = (load.unstarted_tokens + prompt_tokens) / rate
    slots = target.slots or DEFAULT_SLOTS
    service = load.service_s or DEFAULT_SERVICE_S
    if ahead >= slots:
        seconds += (ahead - slots + 1) * service / slots
    signals = load.signals
    if signals is not None and signals.kv_usage > KV_PRESSURE_FROM:
        seconds += service * (signals.kv_usage - KV_PRESSURE_FROM) / (1 - KV_PRESSURE_FROM)
    return seconds


def occupancy(target: Target, load: Load) -> float:
    """Share of slots in use: the tie-breaker between targets with the same prediction, GPU utilisation counted in.

    Utilisation is nearly always high on a busy engine, so it only ever separates equals.
    """
    share = (load.inflight + load.foreign) / (target.slots or DEFAULT_SLOTS)
    signals = load.signals
    if signals is None:
        return share
    return share + 0.1 * max(signals.kv_usage, 0.0) + 0.01 * max(signals.gpu_utilisation, 0.0)
