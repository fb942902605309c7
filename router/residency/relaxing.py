"""Whether a policy lets anything go further than the one before it, and what: exact, over the compiled policies.

A label admits a place or it does not, and a meet admits what all its parts admit. So a request can go somewhere it could not go
before if and only if one of the parts of labels (a key's ceiling, a tag, a model's or a finding's label, ...) admits a place that
it did not admit before; the parts are compared one by one, in names, place by place. Keys of the store have ceilings made of
tags, so what is said of tags covers them. Signed relaxations have signatures of their own and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce

import msgspec

from router.config import Config
from router.fixed_targets import declared_evidence
from router.policy import Policy
from router.residency.classify.cache import Outcome
from router.residency.classify.kinds import Kind
from router.residency.classify.rule import compile_rules
from router.residency.label import Evidence, Label, admits


class Change(msgspec.Struct, frozen=True):
    """What a new policy changes: `wider` and `narrower` name the part of a label and the place, one line for people each."""

    wider: tuple[str, ...]
    narrower: tuple[str, ...]


class _Part(msgspec.Struct, frozen=True):
    """A part of labels: None narrows nothing; without `may_leave` it never reaches an external place."""

    label: Label | None
    may_leave: bool = True


class _Place(msgspec.Struct, frozen=True):
    evidence: Evidence
    external: bool


NOWHERE = _Part(Label(0, 0))


def compare(before: tuple[Config, Policy], after: tuple[Config, Policy], now: float) -> Change:
    """What `after` allows that `before` did not, and the other way round.

    Args:
        before: the configuration that runs, and the same compiled.
        after: the one that is to run.
        now: UNIX time in seconds; evidence that ends later counts as allowed until then, so one that ends later still is wider.
    """
    wider = (*_growth(before, after, now), *_looser_scan(before[0], after[0]))
    narrower = (*_growth(after, before, now), *_looser_scan(after[0], before[0]))
    return Change(tuple(dict.fromkeys(wider)), tuple(dict.fromkeys(narrower)))


def _growth(before: tuple[Config, Policy], after: tuple[Config, Policy], now: float) -> Iterator[str]:
    old_places, new_places = _places(*before), _places(*after)
    moments = sorted({now, *(p.evidence.expires for p in old_places.values() if now < p.evidence.expires < math.inf)})
    demands = list(_demand_pairs(before, after))
    for name, old, new in (*_key_pairs(before[1], after[1]), *_tag_pairs(before[1], after[1]), *demands):
        for where, place in new_places.items():
            known = old_places.get(where)
            if known is None and (name, old, new) in demands:
                continue  # what is said of keys and tags says it: a demand alone opens no new place
            if any(_reaches(new, place, t) and not (known and _reaches(old, known, t)) for t in moments):
                yield f"{name}: {where}"


def _reaches(part: _Part, place: _Place, now: float) -> bool:
    if place.external and not part.may_leave:
        return False
    return part.label is None or admits(part.label, place.evidence, now)


def _key_pairs(before: Policy, after: Policy) -> Iterator[tuple[str, _Part, _Part]]:
    """Every key's ceilings before and after: of the key in the same hands, and of the one with the same name."""
    by_id = {grant.id: grant for grant in before.keys.values()}
    for digest, grant in after.keys.items():
        earlier = {old.digest: old for old in (before.keys.get(digest), by_id.get(grant.id)) if old is not None}
        for old in earlier.values():
            may = (before.spill_enabled and old.spill, after.spill_enabled and grant.spill)
            yield f"key {grant.id}", _Part(old.ceiling, may[0]), _Part(grant.ceiling, may[1])
            if grant.redacted is not None:
                redacted = NOWHERE if old.redacted is None else _Part(old.redacted, may[0])
                yield f"redacted {grant.id}", redacted, _Part(grant.redacted, may[1])


def _tag_pairs(before: Policy, after: Policy) -> Iterator[tuple[str, _Part, _Part]]:
    """Tags that are known on both sides: one that nobody knows lets nobody in."""
    spill = (before.spill_enabled, after.spill_enabled)
    for name in sorted(after.tags.keys() & before.tags.keys()):
        yield f"tag {name}", _Part(before.tags[name], spill[0]), _Part(after.tags[name], spill[1])
    yield "the default", _Part(before.default_label, spill[0]), _Part(after.default_label, spill[1])


def _demand_pairs(before: tuple[Config, Policy], after: tuple[Config, Policy]) -> Iterator[tuple[str, _Part, _Part]]:
    """What else narrows labels; what is there on one side only narrows nothing on the other."""
    yield "an unknown conversation", _Part(before[1].lineage_label), _Part(after[1].lineage_label)
    demands = (_demands(*before), _demands(*after))
    for name in sorted(demands[0]):
        yield name, _Part(demands[0][name]), _Part(demands[1].get(name))


def _demands(config: Config, policy: Policy) -> dict[str, Label]:
    """What tenants, models and findings ask for; a name that is missing asks for nothing."""
    found = {f"tenant {name}": _meet(policy.tags[tag] for tag in tags) for name, tags in policy.tenants.items() if tags}
    found.update({f"model {name}": label for name, label in policy.model_labels.items()})
    rules = compile_rules(config.classify, policy.tags)
    if rules is not None:
        found["finding unknown"] = rules.unknown
        for kind in Kind:
            label = rules.label_for(Outcome(frozenset({kind})))
            if label is not None:
                found[f"finding {kind.value}"] = label
    return found


def _meet(labels: Iterable[Label]) -> Label:
    return reduce(Label.meet, labels)


def _looser_scan(before: Config, after: Config) -> Iterator[str]:
    """Settings of the scan itself, where what is found cannot be compared: whatever may find less."""
    old, new = before.classify, after.classify
    if not old.rules:
        return
    looser = {
        "media": old.media == "tighten" and new.media == "ignore",
        "min_confidence": new.min_confidence > old.min_confidence,
        "max_characters": new.max_characters > old.max_characters,
        "countries": new.countries is not None and (old.countries is None or not set(old.countries) <= set(new.countries)),
        "detector": old.detector is not None and new.detector != old.detector,
    }
    yield from (f"classify.{name}: less may be found" for name, is_looser in looser.items() if is_looser)


def _places(config: Config, policy: Policy) -> dict[str, _Place]:
    """Every place bytes may go to: zones with engines, and each target at its address."""
    places = {}
    for model in config.models:
        for replicas in model.replicas:
            words = policy.vocabulary
            zone, duties = words.zone_mask([replicas.zone]), words.duty_mask(replicas.duties)
            carried = f" with {', '.join(sorted(replicas.duties))}" if replicas.duties else ""
            places[f"engines in {replicas.zone}{carried}"] = _Place(Evidence(zone, zone, duties), False)
    for target in config.targets:
        spoken = target.model_dump_json(include={"url", "dialect", "provider", "tls"}, exclude_defaults=True)
        places[f"target {target.id} {spoken}"] = _Place(declared_evidence(target, policy.vocabulary), target.kind == "cloud")
    return places
