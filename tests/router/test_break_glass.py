"""A relaxation takes two people, ends by itself, and is named in what it touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from router.compiled import compile_policy
from router.config import ConfigError, parse_config
from router.identity.stored import compile_stored
from router.residency.admission import label_request
from router.residency.break_glass import RelaxationError, read_relaxations, sign
from router.residency.conversation import NO_CONVERSATION
from router.residency.guard_copy import ceilings_of, copy_for_guards
from router.residency.inflight import InFlight
from router.residency.lineage import LineageBook
from router.residency.resolve import relaxations_at, resolve_label
from router.store.keys import StoredKey
from tests.router.builders import grant_of, make_config, make_target

PRIVATE = {name: bytes([i]) * 32 for i, name in enumerate(("alice", "bob", "carol"), start=1)}
APPROVERS = {
    name: Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw().hex() for name, key in PRIVATE.items()
}
FIELDS = {
    "id": "inc-42",
    "key": "plain",
    "tags": ["any"],
    "begins": "2026-11-22T03:00:00Z",
    "ends": "2026-11-22T05:00:00+00:00",
    "reason": "eu is down",
}
BEGINS, ENDS = 1795316400.0, 1795323600.0


def line(signers=("alice", "bob"), signed=None, **changes):
    fields = {**FIELDS, **changes}
    return json.dumps({**fields, "signatures": {name: sign(signed or fields, PRIVATE[name]) for name in signers}})


def read(text, required=2, approvers=None):
    return read_relaxations(text, approvers or APPROVERS, required, 8.0)


def test_two_signatures_open_for_a_while():
    (found,) = read(f"# for the drill\n\n{line()}\n")
    assert (found.id, found.tags, found.begins, found.ends, found.approved_by) == (
        "inc-42",
        ("any",),
        BEGINS,
        ENDS,
        ("alice", "bob"),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (line(("alice",)), "2 approvers must sign, 1 did"),
        (line(()), "0 did"),
        (line(signed={**FIELDS, "tags": ["eu"]}), "not valid"),
        (line(signed={**FIELDS, "ends": "2026-11-22T06:00:00Z"}), "not valid"),
        (line(signed={**FIELDS, "key": "other"}), "not valid"),
        (line(ends="2026-11-22T03:00:00Z"), "lasts"),
        (line(ends="2026-11-22T11:00:01Z"), "at most 8 hours"),
        (line(begins="2026-11-22T03:00:00"), "offset"),
        (line(begins="soon"), "soon"),
        (line(begins="0001-01-01T00:00:00+23:59"), "lasts"),
        (line(reason=" "), "empty"),
        (line(tags=[]), "empty"),
        (line(extra=1, signed=FIELDS), "extra"),
        (line() + "\n" + line(), "twice"),
        ("{", "line 1"),
        (json.dumps({**FIELDS, "signatures": {"mallory": "00" * 64}}), "not an approver"),
        (json.dumps({**FIELDS, "signatures": {"alice": "zz", "bob": ""}}), "not valid"),
    ],
)
def test_anything_less_is_refused(text, why):
    with pytest.raises(RelaxationError, match=why):
        read(text)


def test_one_person_under_two_names_is_one_person():
    approvers = {"alice": APPROVERS["alice"], "bob": APPROVERS["alice"]}
    text = json.dumps({**FIELDS, "signatures": {name: sign(FIELDS, PRIVATE["alice"]) for name in ("alice", "bob")}})
    with pytest.raises(RelaxationError, match="must sign"):
        read(text, approvers=approvers)


@pytest.mark.parametrize(
    ("approvers", "more", "why"),
    [
        ({"alice": "xx"}, {}, "64 lower-case hex"),
        ({"alice": APPROVERS["alice"], "bob": APPROVERS["alice"]}, {}, "share a key"),
        ({"alice": APPROVERS["alice"]}, {}, "2 are required"),
        (APPROVERS, {"required": 1}, "greater than or equal to 2"),
    ],
)
def test_the_configuration_names_enough_people(approvers, more, why):
    data = make_config().model_dump(exclude_none=True)
    with pytest.raises(ConfigError, match=why):
        parse_config({**data, "break_glass": {"file": "x", "approvers": approvers, **more}})


def relaxed_policy(**changes):
    return compile_policy(make_config(), Path(), read(line(**changes)))


def test_the_ceiling_widens_only_meanwhile_and_tags_still_tighten():
    policy, plain = relaxed_policy(), compile_policy(make_config(), Path())
    grant = grant_of(policy)
    assert policy.epoch != plain.epoch
    for now, wide in ((BEGINS - 1, False), (BEGINS, True), (ENDS - 1, True), (ENDS, False), (0.0, False)):
        assert (resolve_label(grant, (), policy, now=now) == policy.tags["any"]) == wide
        assert resolve_label(grant, ("phi",), policy, now=now) == policy.tags["phi"]
        assert relaxations_at(grant, now) == (("inc-42",) if wide else ())
    labelled = label_request(grant, ("any",), policy, LineageBook(1000), NO_CONVERSATION, {"IBAN": policy.tags["eu"]}, BEGINS)
    assert labelled.label == policy.tags["eu"]
    assert labelled.sources == {
        "key": "local", "header": "any", "widen_ignored": "any", "classification": "IBAN", "break_glass": "inc-42"
    }  # fmt: skip
    assert copy_for_guards(policy, 0.0).keys["plain"].relaxed == [(policy.label_text(policy.tags["any"]), BEGINS, ENDS)]


def test_a_relaxation_that_is_changed_is_another_policy_and_stored_keys_have_theirs():
    epochs = {relaxed_policy(**changes).epoch for changes in ({}, {"ends": "2026-11-22T04:00:00Z"}, {"reason": "drill"})}
    assert len(epochs) == 3
    config, policy = make_config(), relaxed_policy(key="stored")
    key = StoredKey(b"m" * 32, "stored", "default", b'{"id": "stored", "sha256": "%s"}' % (b"0" * 64), 0.0)
    grant = compile_stored(key, config, policy)
    assert relaxations_at(grant, BEGINS) == ("inc-42",) and resolve_label(grant, (), policy, now=BEGINS) == policy.tags["any"]
    known = ceilings_of([grant], policy).find(grant.guard_id)
    assert known.relaxed == [(policy.label_text(policy.tags["any"]), BEGINS, ENDS)]


def test_its_end_cuts_what_it_let_out():
    policy = relaxed_policy()
    book = InFlight(policy)
    grant = grant_of(policy)
    ticket = book.enter(grant, (), resolve_label(grant, (), policy, now=BEGINS))

    class Exchange:
        deadline, failure, connection = 0.0, "", None

        def broken(self, why):
            self.failure = why

    exchange = Exchange()
    ticket.begin(make_target(policy, "t", "cloud"), "tiny", exchange)
    assert book.recheck(lambda target: target.evidence, ENDS - 1) == 0
    assert book.recheck(lambda target: target.evidence, ENDS) == 1
    assert exchange.failure == "policy_revoked"


def test_a_relaxation_to_an_unknown_tag_is_refused():
    with pytest.raises(ConfigError, match="unknown tag `nobody`"):
        relaxed_policy(tags=["nobody"])
