"""The gate of the response cache: nothing is kept or given but where the semantics allow it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from msgspec.structs import replace

from router.placement.targets import Kind
from router.residency.cache_gate import Provenance, may_give, may_keep, owner_of
from router.residency.label import Evidence, Label
from tests.router.builders import KEY, NOW, SPILL_KEY, digest, grant_of, make_policy, make_target

KEYS = [
    {"id": "plain", "sha256": digest(KEY)},
    {"id": "spiller", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True},
]
ZONES = ("eu", "us", "cloud")


def as_names(policy: Any, mask: Label | Evidence) -> tuple[set[str], set[str], set[str]]:
    words = policy.vocabulary
    return set(words.zone_names(mask.process)), set(words.zone_names(mask.store)), set(words.duty_names(mask.duties))


def specified(policy: Any, label: Label, evidence: Evidence) -> bool:
    """allow(L, E) of the semantics, in sets of names."""
    may, there = as_names(policy, label), as_names(policy, evidence)
    return bool(there[0]) and there[0] <= may[0] and there[1] <= may[1] and may[2] <= there[2] and evidence.expires > NOW


@pytest.fixture(scope="module")
def gate_policy():
    return make_policy(
        keys=KEYS,
        residency={"tags": {"phi": {"process": ["eu"], "require": ["baa"]}}, "models": {"big": ["phi"]}},
    )


def some_labels(policy: Any) -> list[Label]:
    sets = [policy.vocabulary.zone_mask(names) for size in range(4) for names in itertools.combinations(ZONES, size)]
    return [Label(process, store, duties) for process in sets for store in sets for duties in (0, 1)]


def test_an_answer_is_given_exactly_where_the_semantics_allow_it(gate_policy):
    policy, randomness, given_out = gate_policy, random.Random(5), 0
    labels = some_labels(policy)
    evidences = [Evidence(label.process, label.store, label.duties, expires) for label in labels for expires in (NOW + 1, NOW)]
    evidences += [Evidence(1, 1, 1), Evidence(3, 2, 1)]
    allowed_in = {label: [evidence for evidence in evidences if specified(policy, label, evidence)] for label in labels}
    grants = {name: grant_of(policy, name) for name in (KEY, SPILL_KEY)}
    for _ in range(8_000):
        grant = grants[randomness.choice([KEY, SPILL_KEY])]
        grant = replace(grant, models=randomness.choice([None, frozenset({"tiny"}), frozenset({"big"})]))
        kind = randomness.choice([Kind.REPLICA, Kind.CLOUD])
        label, own_label = randomness.choice(labels), randomness.choice(labels)
        # Two in three are where the label allows, so that every other reason comes to be the only one.
        inside = allowed_in[label] or evidences
        made_at, kept_at = (randomness.choice(randomness.choice([inside, inside, evidences])) for _ in range(2))
        now_at = randomness.choice([None, made_at, randomness.choice(evidences)])
        model = randomness.choice(["tiny", "big"])
        origin = Provenance(
            randomness.choice([policy.epoch] * 9 + ["another"]),
            randomness.choice([grant.tenant] * 9 + ["another"]),
            randomness.choice(["", owner_of(grant), "another"]),
            policy.label_for(randomness.choice([label, label, own_label]), model),
            model,
            make_target(policy, "t", "eu", kind=kind, evidence=made_at),
        )
        mine = policy.label_for(label, model)
        scope = origin.epoch == policy.epoch and origin.tenant == grant.tenant and origin.owner in ("", owner_of(grant))
        allowed = (kind is not Kind.CLOUD or grant.spill) and (grant.models is None or model in grant.models)
        narrow = all(a <= b for a, b in zip(as_names(policy, mine)[:2], as_names(policy, origin.label)[:2], strict=True))
        narrow = narrow and as_names(policy, mine)[2] >= as_names(policy, origin.label)[2]
        places = (
            specified(policy, mine, made_at)
            and specified(policy, mine, kept_at)
            and (now_at is None or specified(policy, mine, now_at))
        )
        given_now = may_give(policy, grant, label, origin, now_at, kept_at, NOW)
        assert given_now is (scope and allowed and narrow and places)
        given_out += given_now
        kept = may_keep(policy, grant, origin, now_at, kept_at, NOW)
        if now_at is None:
            assert not kept
        else:
            fits = specified(policy, origin.label, kept_at) and specified(policy, origin.label, now_at)
            assert kept is (scope and allowed and fits)
    assert given_out > 100


def open_gate(own: Any, **changes: Any) -> bool:
    """An answer that may be given, with one thing about it, or about who asks, changed."""
    policy = changes.pop("policy", own)
    grant = changes.pop("grant", grant_of(policy, SPILL_KEY))
    label = changes.pop("label", grant.ceiling)
    known = changes.pop("known", None)
    words = policy.vocabulary
    eu = words.zone_mask(["eu"])
    target = changes.pop("target", make_target(policy, "t", "eu"))
    store = changes.pop("store", Evidence(eu, eu))
    origin = Provenance(policy.epoch, grant.tenant, owner_of(grant), grant.ceiling, "tiny", target)
    return may_give(policy, grant, label, replace(origin, **changes), known, store, NOW)


def test_each_thing_alone_closes_the_gate(gate_policy):
    policy, words = gate_policy, gate_policy.vocabulary
    us, cloud = words.zone_mask(["us"]), words.zone_mask(["cloud"])
    wide = grant_of(policy, SPILL_KEY).ceiling
    assert open_gate(policy) and open_gate(policy, owner="") and open_gate(policy, known=Evidence(us, us))
    no_spill, other_model = (
        replace(grant_of(policy, SPILL_KEY), **x) for x in ({"spill": False}, {"models": frozenset({"big"})})
    )
    outside = make_target(policy, "t", "cloud", kind=Kind.CLOUD)
    assert open_gate(policy, target=outside) and not open_gate(policy, target=outside, grant=no_spill)
    for closed in (
        {"epoch": "another"},
        {"tenant": "another"},
        {"owner": "another"},
        {"grant": other_model},
        {"label": replace(wide, process=us)},
        {"label": replace(wide, store=us)},
        {"label": replace(wide, duties=1)},
        {"store": Evidence(1, 1)},
        {"store": Evidence(0, 0)},
        {"store": Evidence(us, us, 0, NOW)},
        {"known": Evidence(us, 1)},
        {"known": Evidence(us, us, 0, NOW)},
        {"target": make_target(policy, "t", "eu", evidence=Evidence(1, us))},
        {"target": make_target(policy, "t", "eu", evidence=Evidence(us, us, 0, NOW))},
        {"label": replace(wide, process=us | cloud), "known": None},
        {"policy": replace(policy, spill_enabled=False), "target": outside},
    ):
        assert not open_gate(policy, **closed), closed
    # Kept under a tighter label than the asking request's: those bytes would go on under the wider one.
    assert not may_give(
        policy,
        grant_of(policy, SPILL_KEY),
        wide,
        Provenance(policy.epoch, "default", "", Label(us, us), "tiny", make_target(policy, "t", "us")),
        None,
        Evidence(us, us),
        NOW,
    )
