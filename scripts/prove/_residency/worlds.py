"""Random policies for the simulation, and what they mean in plain sets: an oracle that shares no code with what it judges."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.compiled import compile_policy
from router.config import Config, ConfigError, parse_config
from router.fixed_targets import fixed_targets
from router.placement.targets import Address, Report
from router.policy import KeyGrant, Policy
from router.residency.break_glass import Relaxation
from router.residency.classify import rule as classify
from router.residency.guard import GuardPolicy
from router.residency.guard_copy import copy_for_guards
from router.residency.label import Label

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


NOWHERE: Allowed = (frozenset(), frozenset(), frozenset())


def digest(key: str) -> str:
    """The SHA-256 a configuration holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def both(a: Allowed, b: Allowed) -> Allowed:
    """What two labels allow together."""
    return (a[0] & b[0], a[1] & b[1], a[2] | b[2])


def either(a: Allowed, b: Allowed) -> Allowed:
    """The strictest label that is as wide as both."""
    return (a[0] | b[0], a[1] | b[1], a[2] & b[2])


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
    redacted: Allowed | None = None

    def at(self, now: float, ceiling: Allowed | None = None) -> Allowed:
        """The ceiling, or another one of the key's, at a time."""
        label = ceiling or self.ceiling
        for more, begins, ends in self.relaxed:
            if begins <= now < ends:
                label = either(label, more)
        return label


@dataclass(frozen=True, eq=False)
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
    asking: Allowed | None
    """The meet of the tags that require lineage."""
    widest: dict[str, Allowed]
    """Per tenant the widest that any of its keys may ever have."""
    by_key: dict[str, KeyGrant]
    reading: classify.Rules | None
    """What the code makes of a value that is found, and the oracle."""
    found: Allowed | None
    cloud: dict[str, list[Report]] = field(default_factory=dict)
    """The cloud targets by the egress's incarnation; made once, as they are for every run."""
    known: dict[tuple[str, tuple[str, ...], float, bool], Allowed | None] = field(default_factory=dict)
    texts: dict[Label, str] = field(default_factory=dict)
    sets: dict[Label, Allowed] = field(default_factory=dict)

    def label(self, key: str, tags: tuple[str, ...], now: float, redacted: bool = False) -> Allowed | None:
        """label(r, epoch) without its conversation and what stands in it; None when this policy refuses the request."""
        asked = (key, tags, now, redacted)
        if asked not in self.known:
            self.known[asked] = self._label(*asked)
        return self.known[asked]

    def says(self) -> object:
        """What classification makes of a value, in names, as `RouterState` compares it."""
        return None if self.reading is None else self.reading.in_names(self.policy.label_text)

    def text(self, label: Label) -> str:
        """The label in names, remembered as `RouterState` does."""
        text = self.texts.get(label)
        if text is None:
            text = self.texts[label] = self.policy.label_text(label)
        return text

    def in_sets(self, label: Label) -> Allowed:
        """A label of the code's in plain sets."""
        sets = self.sets.get(label)
        if sets is None:
            place = self.policy.place_of(label)
            sets = self.sets[label] = (frozenset(place.process), frozenset(place.store), frozenset(place.duties))
        return sets

    def cloud_reports(self, egress: str) -> list[Report]:
        """The cloud targets behind one incarnation of the egress."""
        reports = self.cloud.get(egress)
        if reports is None:
            reports = self.cloud[egress] = [Report(item) for item in fixed_targets(self.config, Address("h", 9999), egress)]
        return reports

    def _label(self, key: str, tags: tuple[str, ...], now: float, redacted: bool) -> Allowed | None:
        grant = self.grants.get(key)
        if grant is None or not set(tags) <= set(self.tags):
            return None
        if redacted and grant.redacted is None:
            return None
        label = grant.at(now, grant.redacted if redacted else None)
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
    if random_.random() < 0.6:
        data["classify"] = {"rules": [{"if": ["iban"], "meet": random_.choice(list(tags))}]}
        for key in keys:
            if random_.random() < 0.4:
                key["redact"] = {"then": random_.choice(some)}
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
        redacted = tags[key["redact"]["then"]] if "redact" in key else None
        grants[key["id"]] = Grant(ceiling, key["spill"], key["tenant"], relaxed, redacted)
    models = {name: tags[named[0]] for name, named in data["residency"]["models"].items()}
    expires = START + 86400 - START % 86400 if "expires" in data["targets"][0] else float("inf")
    copy = copy_for_guards(policy, 0.0)
    widest: dict[str, Allowed] = {}
    for grant in grants.values():
        for label in (grant.ceiling, *(either(grant.ceiling, more) for more, _, _ in grant.relaxed)):
            widest[grant.tenant] = either(widest.get(grant.tenant, label), label)
    by_key = {grant.id: grant for grant in policy.keys.values()}
    spill = data["spill"]["enabled"]
    reading = classify.compile_rules(config.classify, policy.tags)
    found = tags[data["classify"]["rules"][0]["meet"]] if "classify" in data else None
    return Rules(config, policy, copy, tags, grants, models, spill, expires, asking, widest, by_key, reading, found)
