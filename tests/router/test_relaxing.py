"""A policy that lets anything go further than the one that runs is found out, exactly, and waits for two signatures."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from router.compiled import compile_policy
from router.config import ConfigError, digest_of, parse_config
from router.policy_source import PolicySource
from router.residency.break_glass import Approval, sign_bytes
from router.residency.label import admits
from router.residency.relaxing import compare
from tests.router.builders import NOW, digest, make_config

BASE = make_config().model_dump(mode="json", exclude_none=True)
PLAIN, SPILLER = BASE["keys"]
[PROVIDER] = BASE["targets"]
PHI = {"process": ["eu"], "require": ["baa"]}
IBAN = {"rules": [{"if": ["iban"], "meet": "phi"}]}


def changed(old: dict[str, Any], new: dict[str, Any]) -> Any:
    before, after = make_config(**old), make_config(**new)
    return compare((before, compile_policy(before, Path())), (after, compile_policy(after, Path())), NOW)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ({"keys": [{**PLAIN, "residency": "eu"}]}, {"keys": [PLAIN]}, ["key plain"]),
        ({"keys": [{**PLAIN, "residency": "eu"}]}, {"keys": [{**PLAIN, "id": "renamed"}]}, ["key renamed"]),
        ({"keys": [{**PLAIN, "residency": "eu"}]}, {"keys": [{**PLAIN, "sha256": digest("new")}]}, ["key plain"]),
        ({"keys": [{**SPILLER, "spill": False}]}, {"keys": [SPILLER]}, ["key spiller"]),
        ({"spill": {"enabled": False}}, {}, ["key spiller", "tag any"]),
        ({}, {"residency": {"tags": {"phi": {"process": ["eu"]}}}}, ["tag phi"]),
        ({}, {"residency": {"tags": {"phi": PHI}, "default": "any"}}, ["the default"]),
        ({"residency": {"tags": {"phi": PHI}, "tenants": {"default": ["eu"]}}, "keys": [PLAIN]}, {"keys": [PLAIN]},
         ["key plain", "tenant default"]),
        ({"residency": {"tags": {"phi": PHI}, "models": {"big": ["phi"]}}}, {}, ["model big"]),
        ({"residency": {"tags": {"phi": {**PHI, "requires_lineage": True}}}}, {}, ["an unknown conversation"]),
        ({"classify": IBAN}, {}, ["finding iban", "finding unknown"]),
        ({"classify": IBAN}, {"classify": {"rules": [{"if": ["phi"], "meet": "phi"}]}}, ["finding iban"]),
        ({"classify": IBAN}, {"classify": {**IBAN, "min_confidence": 0.9}}, ["classify.min_confidence"]),
        ({"classify": IBAN}, {"classify": {**IBAN, "media": "ignore"}}, ["classify.media"]),
        ({"classify": IBAN}, {"classify": {**IBAN, "countries": ["de"]}}, ["classify.countries"]),
        ({"keys": [SPILLER]}, {"keys": [{**SPILLER, "redact": {"then": "any"}}]}, ["redacted spiller"]),
        ({}, {"targets": [{**PROVIDER, "url": "https://elsewhere.invalid"}]}, ["key spiller", "tag any"]),
        ({}, {"targets": [PROVIDER, {**PROVIDER, "id": "second"}]}, ["key spiller", "tag any"]),
        ({"targets": [{**PROVIDER, "expires": "2027-06-01"}]}, {}, ["key spiller"]),
    ],
)  # fmt: skip
def test_what_goes_further_is_named_and_nothing_else_is(old, new, names):
    change = changed(old, new)
    for name in names:
        assert any(line.startswith(f"{name}:") for line in change.wider), change
    assert changed(new, new).wider == changed(old, old).wider == ()
    assert set(changed(new, old).narrower) == set(change.wider)


@pytest.mark.parametrize(
    "new",
    [
        {"slo": {"ttft_ms": 7}},
        {"keys": [PLAIN, SPILLER, {"id": "third", "sha256": digest("third"), "residency": "any", "spill": True}]},
        {"residency": {"tags": {"phi": PHI, "new": {"process": ["eu", "us", "cloud"]}}}},
        {"residency": {"tags": {"phi": {**PHI, "process": ["eu", "us"]}}}},
        {"classify": IBAN},
        {"targets": [{**PROVIDER, "price": {"prompt": 9, "completion": 9}}]},
        {"duties": ["aaa", "baa", "zzz"]},
        {"spill": {"enabled": False}, "keys": [PLAIN]},
    ],
)
def test_what_opens_nothing_that_was_shut_is_no_relaxation(new):
    assert changed({}, new).wider == ()


def some_policy() -> dict[str, Any]:
    zones = ["us", "cloud"]
    tags = {
        name: {"process": ["eu", *random.sample(zones, random.randint(0, 2))], "require": ["baa"] * random.randint(0, 1)}
        for name in ("a", "b")
    }
    ceilings = [["a"], ["b"], ["a", "b"], ["any"]]
    keys = [{**key, "residency": random.choice(ceilings), "spill": random.random() < 0.5} for key in (PLAIN, SPILLER)]
    return {"residency": {"tags": tags, "models": {"tiny": ["a"]} if random.random() < 0.3 else {}}, "keys": keys}


def reach(policy: Any) -> set[tuple[str, tuple[str, ...], str, int]]:
    """Every key with every set of tags, and the places it gets to with each model."""
    found = set()
    for grant in policy.keys.values():
        for tags in ((), ("a",), ("b",), ("a", "b")):
            label = grant.ceiling
            for tag in tags:
                label = label.meet(policy.tags[tag])
            for i, site in enumerate(policy.sites):
                may = not site.external or (grant.spill and policy.spill_enabled)
                if may and admits(policy.label_for(label, site.model), site.evidence, NOW):
                    found.add((grant.id, tags, site.model, i))
    return found


def test_it_misses_nothing_that_trying_every_label_on_every_place_finds():
    random.seed(5)
    grown = same = 0
    for _ in range(300):
        try:
            pair = [(config, compile_policy(config, Path())) for config in (make_config(**some_policy()) for _ in range(2))]
        except ConfigError:
            continue
        wider = compare(pair[0], pair[1], NOW).wider
        if reach(pair[1][1]) - reach(pair[0][1]):
            assert wider
            grown += 1
        elif not wider:
            same += 1
        else:  # no key that is there goes further, but one of the store, or of tomorrow, would
            assert all(line.startswith(("tag ", "model ", "key ")) for line in wider), wider
    assert grown > 20 and same > 5


PRIVATE = {name: bytes([i]) * 32 for i, name in enumerate(("alice", "bob"), start=1)}
APPROVERS = {n: Ed25519PrivateKey.from_private_bytes(k).public_key().public_bytes_raw().hex() for n, k in PRIVATE.items()}
NARROW, WIDE = {"keys": [{**PLAIN, "residency": "eu"}, SPILLER]}, {"keys": [PLAIN, SPILLER]}


def signed_line(before: str, after: str, *signers: str, hours: float = 1.0) -> str:
    ends = datetime.fromtimestamp(time.time() + hours * 3600, UTC).isoformat()
    approval = Approval(before, after, ends, "eu is full")
    approval.signatures.update({name: sign_bytes(approval.statement(), PRIVATE[name]) for name in signers})
    return msgspec.json.encode(approval).decode() + "\n"


def test_a_wider_policy_waits_for_two_signatures_and_they_are_for_this_step_only(tmp_path):
    args = {**BASE, **NARROW, "break_glass": {"file": "open", "policies": "wider", "approvers": APPROVERS}}
    source = PolicySource(args, tmp_path)
    source.running = first = source.load()
    source.offer(WIDE)
    with pytest.raises(ConfigError, match="tidegate policy approve --before") as refused:
        source.load()
    before, after = digest_of(first.config), digest_of(parse_config({**args, **WIDE}))
    assert all(part in str(refused.value) for part in ("key plain: engines in us", before, after))
    for text in (signed_line(before, after, "alice"), signed_line("0" * 64, after, "alice", "bob"), "{"):
        (tmp_path / "wider").write_text(text)
        assert source.changed()
        with pytest.raises(ConfigError):
            source.load()
    (tmp_path / "wider").write_text(signed_line(before, after, "alice", "bob"))
    source.running = source.load()
    assert "key plain: engines in us" in source.wider
    source.offer({"keys": [{**PLAIN, "residency": "us"}, SPILLER]})
    source.running = source.load()
    assert source.wider == (), "a tighter one needs nobody"
    source.offer(WIDE)
    with pytest.raises(ConfigError, match="lets more through"):
        source.load()


def test_a_signed_wider_policy_cannot_be_gone_back_to_once_its_leave_has_ended(tmp_path):
    args = {**BASE, **NARROW, "break_glass": {"file": "open", "policies": "wider", "approvers": APPROVERS, "max_hours": 4}}
    source = PolicySource(args, tmp_path)
    source.running = narrow = source.load()
    step = digest_of(narrow.config), digest_of(parse_config({**args, **WIDE}))
    (tmp_path / "wider").write_text(signed_line(*step, "alice", "bob", hours=3.9))
    source.offer(WIDE)
    assert source.load() is not None and source.wider, "as long as it holds, it may be gone back and forth"
    for hours in (-0.01, 4.2):
        (tmp_path / "wider").write_text(signed_line(*step, "alice", "bob", hours=hours))
        with pytest.raises(ConfigError, match="leave has ended"):
            source.load()
    longer = signed_line(*step, "alice", "bob", hours=-0.01).replace('"ends":"2', '"ends":"3')
    for text in (longer, longer.replace('"ends":"3', '"end":"3')):
        (tmp_path / "wider").write_text(text)
        with pytest.raises(ConfigError, match="line 1"):
            source.load()
    source.offer(None)
    assert source.load().policy.epoch == narrow.policy.epoch, "a file that does not hold keeps nothing narrower away"


def test_without_the_file_in_the_configuration_nobody_is_asked(tmp_path):
    source = PolicySource({**BASE, **NARROW, "break_glass": {"file": "open", "approvers": APPROVERS}}, tmp_path)
    source.running = source.load()
    source.offer(WIDE)
    assert source.load().config.keys[0].residency is None and source.wider == ()
