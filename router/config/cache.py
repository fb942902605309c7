"""The `cache:` sections: where answers may be kept, how many of them, and which keys take part."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from router.config.strict import Name, Strict


class Cache(Strict):
    """The response cache of every router, in its memory and nowhere else. Nothing is kept but for keys with `cache`."""

    zones: list[Name] = Field(min_length=1)
    """The zones the routers stand in, which is where answers are kept: a label must allow storing in all of them. Under Ray the
    zone of the router's own node counts too, and a node of unknown zone keeps nothing."""
    duties: list[Name] = []
    """What those places have committed themselves to."""
    max_mib: float = Field(default=64, ge=1)
    """Bound on the memory of each router's cache, answers that are just being copied included."""
    max_entries: int = Field(default=10_000, ge=1)
    max_answer_kib: float = Field(default=256, ge=1)
    """A larger answer is not kept."""
    ttl_s: float = Field(default=3600, gt=0)
    """How long an answer is kept at most, in seconds."""


class KeyCache(Strict):
    """How a key takes part in the response cache; `cache: true` means all of this as it is by default."""

    share: Literal["tenant", "key"] = "tenant"
    """Whose answers it gets: those of all keys of its tenant that share likewise, or its own only. A JWT counts as a key."""
    sampled: bool = False
    """Keep answers of requests that have neither `temperature: 0` nor a `seed`, too."""
    ttl_s: float | None = Field(default=None, gt=0)
    """A shorter time than the cache's own."""


def read_switch(value: Any) -> Any:
    """`cache: true` of a key as the mapping it stands for, `false` as nothing."""
    return {} if value is True else None if value is False else value
