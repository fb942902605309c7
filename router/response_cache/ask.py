"""Which requests are for the response cache, what the client says about it, and what makes two of them the same question.

Two requests are the same when their bodies hold the same JSON, whatever the order of keys and the white space: every field
counts, known here or not, because an engine may know it. Left out are only `model` (the model that answers counts in its place),
`stream`, and, of a counted stream, `stream_options.include_usage`: these say how an answer is told, not what it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import msgspec

from router.placement.targets import Endpoint
from router.residency.media import remote_media
from router.response_cache.rule import CacheRule

GENERATED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.MESSAGES})
"""Answers that are drawn at random unless the request says otherwise."""
COMPUTED = frozenset({Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE})
"""Answers that are the same each time."""
_USAGE = "include_usage"
_DOES_MORE = frozenset({"kv_transfer_params"})
"""Fields that make an engine do more than answer."""
_NO_LIMIT = float("inf")


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """What a request's `Cache-Control` asks (RFC 9111, 5.2.1): may an answer be read, may one be kept, and how old may it be."""

    read: bool = True
    keep: bool = True
    max_age_s: float = _NO_LIMIT


class Question(msgspec.Struct, frozen=True, gc=False):
    """What of a request says which answer fits, in whatever scope."""

    endpoint: str
    streamed: bool
    digest: bytes


def read_wishes(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """The wishes in all `Cache-Control` headers; directives that are unknown here say nothing, an unreadable age is 0."""
    read = keep = True
    max_age = _NO_LIMIT
    for name, value in headers:
        if name != b"cache-control":
            continue
        for part in value.lower().split(b","):
            directive, _, argument = part.strip().partition(b"=")
            if directive == b"no-store":
                read = keep = False
            elif directive == b"no-cache":
                read = False
            elif directive == b"max-age":
                seconds = argument.strip(b'" ')
                max_age = min(max_age, float(seconds) if seconds.isdigit() else 0.0)
    return Wishes(read, keep, max_age)


def forbids_keeping(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer's own `Cache-Control` says that it must not be kept for others (RFC 9111, 5.2.2)."""
    values = b",".join(value.lower() for name, value in headers if name == b"cache-control")
    return not {b"no-store", b"private"}.isdisjoint(part.strip().partition(b"=")[0] for part in values.split(b","))


def read_question(secret: bytes, path: str, parsed: dict[str, Any], rule: CacheRule) -> Question | None:
    """What a request asks, or None when its answer must not stand for another's.

    Args:
        secret: keys the digest, so that it tells nothing to whoever does not have it; up to 64 bytes.
        path: the endpoint.
        parsed: the body.
        rule: the key's part in the cache.
    """
    if path not in COMPUTED and (path not in GENERATED or not (rule.sampled or is_deterministic(parsed))):
        return None
    if not _DOES_MORE.isdisjoint(parsed) or remote_media(parsed) is not None:
        return None
    streamed = bool(parsed.get("stream"))
    text = canonical(parsed, counted=streamed and path in (Endpoint.CHAT, Endpoint.COMPLETIONS))
    if text is None:
        return None
    return Question(path, streamed, hashlib.blake2b(text, digest_size=32, key=secret).digest())


def is_deterministic(parsed: dict[str, Any]) -> bool:
    """Whether a request asks for the one answer: by `temperature: 0`, or by a `seed`."""
    return (_is_number(temperature := parsed.get("temperature")) and temperature == 0) or _is_whole(parsed.get("seed"))


def canonical(parsed: dict[str, Any], *, counted: bool) -> bytes | None:
    """A body as one text, the same for the same JSON; None for what has no such text (a number that is too large for one).

    Args:
        parsed: the body.
        counted: whether it is a stream whose usage event comes only to who asks for it.
    """
    shaping = {name: value for name, value in parsed.items() if name not in ("model", "stream")}
    options = shaping.get("stream_options")
    if counted and isinstance(options, dict) and isinstance(options.get(_USAGE), bool | None):
        rest = {name: value for name, value in options.items() if name != _USAGE}
        shaping.pop("stream_options")
        if rest:
            shaping["stream_options"] = rest
    try:
        return json.dumps(shaping, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
