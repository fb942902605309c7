"""Prompt text as a chain of keyed chunk hashes: the one language in which engines and routers speak of cached prefixes.

The engine's side turns the token blocks of its KV cache back into text and hashes that; the router hashes the prompt it has
rendered. Both cut the UTF-8 bytes at the same fixed positions, so nobody has to tokenise on the way of a request.

SipHash-2-4 (Aumasson and Bernstein, 2012) is a pseudo-random function keyed with 128 secret bits: whoever sees a router's
table, or the wire between engine and router, cannot test a guess of somebody's text against it.
"""

from __future__ import annotations

import hmac
from bisect import bisect_right
from collections.abc import Iterator

from siphashc import siphash

KEY_BYTES = 16
LONGEST_TEXT = 2 * 1024 * 1024
_STEPS = ((128, 1024), (256, 4096), (512, 32 * 1024), (2048, LONGEST_TEXT))
"""Lengths of chunks, and up to where each holds: fine where prompts are short, coarse where a few tokens do not matter."""


def _ends() -> Iterator[int]:
    end = 0
    for length, until in _STEPS:
        while end < until:
            end += length
            yield end


ENDS: tuple[int, ...] = tuple(_ends())
"""Where chunks end, in bytes from the beginning.

What is not known of a cached prefix is less than one chunk: 128 bytes up to 1 kB, 256 up to 4 kB, 512 up to 32 kB, a sixteenth
beyond. Text behind `LONGEST_TEXT` is not indexed.
"""


def derive_chunk_key(secret: bytes, model: str) -> bytes:
    """The 16-byte hash key of one model's texts: HMAC-SHA256(secret, "prefix" NUL model), cut. All its replicas share it."""
    return hmac.digest(secret, b"prefix\0" + model.encode(), "sha256")[:KEY_BYTES]


def namespace(lora: str = "", salt: str = "") -> bytes:
    """What separates equal texts that share no cache: the LoRA adapter, and the request's `cache_salt`."""
    adapter = lora.encode("utf-8", "surrogatepass")
    return b"%d\0%s%s" % (len(adapter), adapter, salt.encode("utf-8", "surrogatepass"))


def first_state(key: bytes, space: bytes) -> int:
    """The chain's state before any text, for one namespace."""
    return siphash(key, b"tidegate\0" + space)


def next_state(key: bytes, state: int, chunk: bytes) -> int:
    """The hash of one more chunk, which is also the chain's next state."""
    return siphash(key, state.to_bytes(8, "little") + chunk)


def chunk_hashes(key: bytes, space: bytes, text: bytes) -> tuple[int, ...]:
    """The hashes of all whole chunks of a prompt; each stands for the text from the beginning to its end.

    Args:
        key: `derive_chunk_key`.
        space: `namespace`.
        text: the rendered prompt in UTF-8. Up to `LONGEST_TEXT` bytes of it count.

    Returns:
        One 64-bit hash per whole chunk: `ENDS[i]` bytes are cached where hash `i` and all before it are.
    """
    state = siphash(key, b"tidegate\0" + space)
    hashes = []
    start = 0
    for end in ENDS[: bisect_right(ENDS, len(text))]:
        # `next_state`, written out: the call alone would cost a third of the loop.
        state = siphash(key, state.to_bytes(8, "little") + text[start:end])
        hashes.append(state)
        start = end
    return tuple(hashes)


def bytes_until(chunks: int) -> int:
    """How many bytes of text the first `chunks` chunks hold."""
    return ENDS[chunks - 1] if chunks else 0
