"""What a step of an engine costs: the constants that predictions, the planner and the simulated engines share.

One step of continuous batching that works on `T` tokens (decodes first, then prefill chunks) takes

    overhead + T*per_token + max(0, T - knee)*(per_token_full - per_token) + per_context*context of the decodes
             + attention*sum(chunk*(context before it + chunk/2))

seconds: below the knee a step is bound by reading the weights, above it by arithmetic.
"""

from __future__ import annotations

import msgspec


class EngineProfile(msgspec.Struct, frozen=True, gc=False):
    """Constants of one model on one kind of machine; all times in seconds.

    `step_tokens` is the token budget of a step (vLLM's `--max-num-batched-tokens`), `slots` the sequences it works on at
    once (`--max-num-seqs`), `kv_tokens` how many tokens its KV cache holds.
    """

    name: str
    overhead: float
    per_token: float
    per_token_full: float
    knee: int
    per_context: float
    attention: float
    kv_tokens: int
    step_tokens: int = 2048
    slots: int = 256

    def step_s(self, tokens: int, context: float = 0.0, attention_tokens: float = 0.0) -> float:
        """Seconds of one step.

        Args:
            tokens: decodes and prefill tokens in the step.
            context: tokens the decoding sequences look back on, together.
            attention_tokens: sum over the prefill chunks of `chunk * (context before it + chunk / 2)`.
        """
        seconds = self.overhead + tokens * self.per_token + context * self.per_context + attention_tokens * self.attention
        if tokens > self.knee:
            seconds += (tokens - self.knee) * (self.per_token_full - self.per_token)
        return seconds

    def tokens_s(self, tokens: int) -> float:
        """Seconds that so many tokens add to a step."""
        if tokens > self.knee:
            return self.knee * self.per_token + (tokens - self.knee) * self.per_token_full
        return tokens * self.per_token

    def prefill_s(self, uncached: int, cached: int = 0, decoding: int = 0, context: float = 0.0) -> float:
        """Seconds until the first token of a prompt that is alone in the queue.

        Args:
            uncached: prompt tokens to compute.
            cached: prompt tokens before them that are in the KV cache.
            decoding: sequences that decode meanwhile; their tokens come first in every step.
            context: what those look back on, together.
        """
        room = self.step_tokens - decoding
        return self._within_s(-(-uncached // (room if room > 64 else 64)) or 1, uncached, cached, decoding, context)

    def added_s(self, uncached: int, cached: int = 0, decoding: int = 0, context: float = 0.0) -> float:
        """Seconds that a prompt adds to prefills computed anyway, never more than `prefill_s`: short ones share steps."""
        room = self.step_tokens - decoding
        return self._within_s(uncached / (room if room > 64 else 64), uncached, cached, decoding, context)

    def _within_s(self, steps: float, uncached: int, cached: int, decoding: int, context: float) -> float:
        """Seconds of a prefill that takes so many steps, or parts of one."""
        tokens = uncached + steps * decoding
        seconds = steps * (self.overhead + context * self.per_context) + tokens * self.per_token
        if tokens > steps * self.knee:
            seconds += (tokens - steps * self.knee) * (self.per_token_full - self.per_token)
        return seconds + self.attention * uncached * (cached + 0.5 * uncached)


LLAMA_8B_H100 = EngineProfile("llama-3-8b@h100", 7.3e-3, 8.3e-6, 20.9e-6, 300, 46e-9, 0.85e-9, 400_000)
"""Llama-3-8B on one H100, fitted to NVIDIA's measured kernels (aiconfigurator-core 0.12, vLLM 0.24), linear part x1.10."""
QWEN_72B_4XH100 = EngineProfile("qwen2.5-72b@4xh100", 16.5e-3, 34.9e-6, 71.5e-6, 256, 32e-9, 1.05e-9, 390_000)
"""Qwen2.5-72B over four H100, from the same source."""
KNOWN = {profile.name: profile for profile in (LLAMA_8B_H100, QWEN_72B_4XH100)}


def parse_profile(data: bytes) -> EngineProfile:
    """A profile from JSON: its fields, or what `tidegate plan --calibrate` wrote around them.

    Raises:
        ValueError: it is none, or has constants that no engine can have; the text says which.
    """
    try:
        document = msgspec.json.decode(data)
        found = msgspec.convert(document.get("profile", document), EngineProfile)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"this holds no engine profile: {error}") from None
    for name in ("per_token", "per_token_full", "per_context", "attention", "knee"):
        if not 0 <= getattr(found, name) < 1e9:
            raise ValueError(f"`{name}` must not be negative")
    for name in ("overhead", "kv_tokens", "step_tokens", "slots"):
        if not 0 < getattr(found, name) < 1e12:
            raise ValueError(f"`{name}` must be positive")
    if found.per_token_full < found.per_token:
        raise ValueError("`per_token_full`, the cost of a token in a full step, is below `per_token`")
    return found
