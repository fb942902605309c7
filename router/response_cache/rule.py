"""What the configuration says of the response cache, compiled: a key's part in it, and where a router keeps answers."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from router.config import Config, ConfigError, Key
from router.residency.label import Evidence, Label, Vocabulary, admits

CACHE = "cache"
"""The name an answer from the cache has in place of a target's."""


class CacheRule(msgspec.Struct, frozen=True, gc=False):
    """A key's part in the cache: whether it shares with nobody, whether answers drawn at random are kept, and how long."""

    own_only: bool
    sampled: bool
    ttl_s: float


def place_of_cache(config: Config, words: Vocabulary, stands_in: Iterable[str] = ()) -> Evidence | None:
    """Where a router's cache processes and stores.

    Args:
        config: the configuration.
        words: its vocabulary.
        stands_in: zones in which this router is known to stand; an undeclared one makes the place unknown.

    Returns:
        The evidence; None without a cache.
    """
    if config.cache is None:
        return None
    zones = words.zone_mask([*config.cache.zones, *stands_in])
    return Evidence(zones, zones, words.duty_mask(config.cache.duties))


def compile_rule(key: Key, config: Config, words: Vocabulary, ceiling: Label, where: str) -> CacheRule | None:
    """A key's part in the cache, None when it has none.

    Raises:
        ConfigError: there is no cache, or the key's ceiling forbids to keep anything where it is.
    """
    if key.cache is None:
        return None
    place = place_of_cache(config, words)
    if place is None or config.cache is None:
        raise ConfigError(f"{where}.cache: there is no cache: say where answers may be kept (`cache: {{zones: [...]}}`)")
    if not admits(ceiling, place, -1.0):
        kept = ", ".join(config.cache.zones)
        raise ConfigError(f"{where}.cache: this key's ceiling does not let its answers be kept in {kept} (cache.zones)")
    ttl_s = config.cache.ttl_s if key.cache.ttl_s is None else min(key.cache.ttl_s, config.cache.ttl_s)
    return CacheRule(key.cache.share == "key", key.cache.sampled, ttl_s)
