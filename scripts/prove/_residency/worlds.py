"""Random policies for the simulation, and what they mean in plain sets: an oracle that shares no code with what it judges."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.config import Config, ConfigError, parse_config
from router.policy import Policy, compile_policy
from router.residency.break_glass import Relaxation
from router.residency.guard import GuardPolicy
from router.residency.guard_copy import copy_for_guards

START = 1_800_000_000.0
HOUR = 3600.0
INSIDE = ("ams", "ber", "cph")
OUTSIDE = "xyz"
DUTIES = ("baa", "zdr")
TENANTS = {"k1": "one", "k2": "one", "k3": "two"}
TAGS = ("t1", "t2", "t3", "t4")
MODELS = ("small", "big")
Allowed = tuple[frozenset[str], frozenset[str], frozenset[str]]
"""Zones that may process, zones that may store, duties required."""


def digest(key: str) -> str:
    """The SHA-256 a configuration holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def both(a: Allowed, b: Allowed) -> Allowed:
    """What two labels allow together."""
    return (a[0] & b[0], a[1] & b[1], a[2] | b[2])


def allowed_at(label: Allowed, place: tuple[frozenset[str], frozenset[str], frozenset[str]]) -> bool:
    """Whether a place is inside a label; an unknown zone `?` is in none."""
    return bool(place[0]) and place[0] <= label[0] and place[1] <= label[1] and label[2] <= place[2]


@dataclass(frozen=True)
class Grant:
    """What the oracle knows of a key."""

    ceiling: Allowed
    spill: bool
    tenant: str
    relaxed: tuple[tuple[Allowed, float, float], ...] = ()

    def at(self, now: float) -> Allowed:
        """The ceiling at a time."""
        process, store, duties = self.ceiling
        for label, begins, ends in self.relaxed:
            if begins <= now < ends:
                process, store, duties = process | label[0], store | label[1], duties & label[2]
        return (process, store, duties)


@dataclass(frozen=True)
class Rules:
    """One policy: compiled for the code, in sets for the oracle."""

    config: Config
    policy: Policy
    copy: GuardPolicy
    tags: dict[str, Allowed]
    grants: dict[str, Grant]
    models: dict[str, Allowed]
    spill: bool
    cloud_expires: float
    asking: Allowed | None = field(default=None)
    """The meet of the tags that require lineage."""

    def label(self, key: str, tags: tuple[str, ...], now: float) -> Allowed | None:
        """label(r, epoch) without its conversation; None when this policy refuses the request."""
        grant = self.grants.get(key)
        if grant is None or not set(tags) <= set(self.tags):
            return None
        label = grant.at(now)
        for tag in tags:
            label = both(label, self.tags[tag])
        return label


def make_rules(random_: random.Random) -> Rules:
    """A random policy that compiles."""
    for _ in range(1000):
        data, relaxations = _data(random_)
        try:
            config = parse_config(data)
            policy = compile_policy(config, Path("/nonexistent"), relaxations)
        except ConfigError:
            continue
        return _rules(data, config, policy, relaxations)
    raise RuntimeError("none of a thousand random policies compiles")


def _data(random_: random.Random) -> tuple[dict[str, Any], list[Relaxation]]:
    zones: list[str] = [*INSIDE, OUTSIDE]
    if random_.random() < 0.3:
        zones.append("aaa")  # moves every bit
    if random_.random() < 0.3:
        zones.remove(random_.choice(INSIDE[1:]))
    duties = [*DUTIES] if random_.random() < 0.7 else ["aaa", *DUTIES]
    tags = {}
    for name in TAGS[: random_.randint(3, 4)]:
        process = random_.sample(zones, random_.randint(1, len(zones)))
        tag: dict[str, Any] = {"process": process, "require": random_.sample(duties, random_.choice((0, 0, 1)))}
        if random_.random() < 0.3:
            tag["store"] = random_.sample(zones, random_.randint(1, len(zones)))
        tag["requires_lineage"] = random_.random() < 0.1
        tags[name] = tag
    some = ["any", "local", *tags]
    keys = [
        {"id": key, "sha256": digest(key), "tenant": tenant, "residency": random_.choice(some), "spill": random_.random() < 0.6}
        for key, tenant in TENANTS.items()
        if random_.random() < 0.95
    ]
    replicas = [{"zone": zone, "gpus": 0, "duties": random_.sample(list(DUTIES), 1)} for zone in zones if zone in INSIDE]
    cloud = {
        "id": "cloud",
        "kind": "cloud",
        "url": "https://cloud.invalid",
        "zone": OUTSIDE,
        "models": {"small": "s", "big": "b"},
    }
    if random_.random() < 0.3:
        cloud["expires"] = "2027-01-16"  # the day after START
    data = {
        "zones": {zone: {"external": zone == OUTSIDE} for zone in zones},
        "duties": duties,
        "residency": {
            "tags": tags,
            "tenants": {"two": [random_.choice(list(tags))]} if random_.random() < 0.3 else {},
            "models": {"big": [random_.choice(list(tags))]} if random_.random() < 0.3 else {},
        },
        "models": [{"id": name, "source": "x", "tier": "basic", "replicas": replicas} for name in MODELS],
        "targets": [cloud],
        "complexity": {"tiers": ["basic"]},
        "keys": keys,
        "spill": {"enabled": random_.random() < 0.85},
    }
    relaxations = []
    if random_.random() < 0.3:
        key, begins = random_.choice(list(TENANTS)), START + random_.choice((-1, 0, 1)) * HOUR
        relaxations = [Relaxation("r", key, (random_.choice(some),), begins, begins + 2 * HOUR, "drill", ("a", "b"))]
    return data, relaxations


def _rules(data: dict[str, Any], config: Config, policy: Policy, relaxations: list[Relaxation]) -> Rules:
    everywhere = frozenset(data["zones"])
    inside = everywhere - {OUTSIDE}
    tags: dict[str, Allowed] = {"any": (everywhere, everywhere, frozenset()), "local": (inside, inside, frozenset())}
    asking: Allowed | None = None
    for name, tag in data["residency"]["tags"].items():
        process = frozenset(tag["process"])
        label = (process, frozenset(tag.get("store", process)), frozenset(tag["require"]))
        tags[name] = label
        if tag["requires_lineage"]:
            asking = label if asking is None else both(asking, label)
    grants = {}
    for key in data["keys"]:
        ceiling = tags[key["residency"]]
        for name in data["residency"]["tenants"].get(key["tenant"], []):
            ceiling = both(ceiling, tags[name])
        relaxed = tuple((tags[item.tags[0]], item.begins, item.ends) for item in relaxations if item.key == key["id"])
        grants[key["id"]] = Grant(ceiling, key["spill"], key["tenant"], relaxed)
    models = {name: tags[named[0]] for name, named in data["residency"]["models"].items()}
    expires = START + 86400 - START % 86400 if "expires" in data["targets"][0] else float("inf")
    copy = copy_for_guards(policy, 0.0)
    return Rules(config, policy, copy, tags, grants, models, data["spill"]["enabled"], expires, asking)
