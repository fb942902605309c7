"""A new policy and the requests in flight: labels narrow, never widen; what is forbidden is cut."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from router.fixed_targets import fixed_targets, retargeter
from router.placement.fleet import Fleet
from router.placement.targets import Address, Kind, Load, Report
from router.residency.inflight import POLICY_REVOKED, InFlight
from router.residency.label import Evidence, Label, Vocabulary, translate_evidence, translate_label
from router.residency.resolve import ceiling_at, ignored_tags, read_tags, resolve_label
from router.wire.errors import ApiError
from tests.router.builders import NOW, SPILL_KEY, digest, grant_of, make_config, make_facts, make_policy, make_target


class Connection:
    def __init__(self):
        self.discarded = False

    def discard(self):
        self.discarded = True


class Exchange:
    def __init__(self, connected=True):
        self.deadline = 99.0
        self.failure = ""
        self.connection = Connection() if connected else None

    def broken(self, why):
        self.failure = why


TIGHT = [{"id": "plain", "sha256": digest("tg_test-key"), "residency": "us"}]


def enter(policy, zone="eu", tags=(), connected=True, **more):
    book = InFlight(policy)
    grant = grant_of(policy, more.pop("key", "tg_test-key"))
    ticket = book.enter(grant, tags, resolve_label(grant, tags, policy))
    target = make_target(policy, "t", zone, **more)
    exchange = Exchange(connected)
    ticket.begin(target, "tiny", exchange)
    exchange.ticket = ticket  # the book holds none: whoever serves a request holds its ticket
    return book, ticket, exchange, target


def known(policy):
    return lambda target: target.evidence


@pytest.mark.parametrize("connected", [True, False])
def test_a_stream_the_new_policy_forbids_is_cut_and_not_sent_again(connected):
    book, ticket, exchange, _ = enter(make_policy(), connected=connected)
    assert book.adopt(make_policy(keys=TIGHT), known(None), NOW) == 1
    assert exchange.failure == POLICY_REVOKED and exchange.deadline < 0
    assert not connected or exchange.connection.discarded
    assert ticket.target is None and len(book) == 1
    assert book.recheck(known(None), NOW) == 0


def test_a_stream_the_new_policy_allows_goes_on_and_is_not_widened():
    policy = make_policy(keys=TIGHT)
    book, ticket, exchange, _ = enter(policy, "us")
    before = policy.place_of(ticket.label)
    wide = make_policy()
    assert book.adopt(wide, known(None), NOW) == 0
    assert exchange.failure == "" and wide.place_of(ticket.label) == before
    assert book.adopt(make_policy(keys=TIGHT), known(None), NOW) == 0


def test_tightened_then_relaxed_stays_tight():
    policy = make_policy()
    book, ticket, _, _ = enter(policy, "us")
    book.adopt(make_policy(keys=TIGHT), known(None), NOW)
    book.adopt(policy, known(None), NOW)
    assert policy.place_of(ticket.label).process == ("us",)


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": []},
        {"keys": [{"id": "plain", "sha256": digest("another key")}]},
        {"keys": [{"id": "plain", "sha256": digest("tg_test-key"), "models": ["big"]}]},
    ],
)
def test_a_key_that_is_gone_rotated_or_without_the_model_ends_its_streams(changes):
    book, _, exchange, _ = enter(make_policy())
    assert book.adopt(make_policy(**changes), known(None), NOW) == 1
    assert exchange.failure == POLICY_REVOKED


def test_a_tag_that_is_gone_leaves_nothing():
    book, ticket, exchange, _ = enter(make_policy(), tags=("phi",), duties=["baa"])
    assert exchange.failure == ""
    assert book.adopt(make_policy(residency={"tags": {}}), known(None), NOW) == 1
    assert ticket.revoked and ticket.label.process == 0


def test_a_model_that_demands_more_cuts_its_streams():
    book, _, _exchange, _ = enter(make_policy(), "us")
    demanding = make_policy(residency={"tags": {"eu-only": {"process": ["eu"]}}, "models": {"tiny": ["eu-only"]}})
    assert book.adopt(demanding, known(None), NOW) == 1


@pytest.mark.parametrize(
    "changes", [{"spill": {"enabled": False}}, {"keys": [{"id": "spiller", "sha256": digest(SPILL_KEY), "residency": "any"}]}]
)
def test_withdrawing_the_permission_to_spill_cuts_what_is_outside(changes):
    book, _, _exchange, _ = enter(make_policy(), "cloud", key=SPILL_KEY, kind=Kind.CLOUD)
    assert book.recheck(known(None), NOW) == 0
    assert book.adopt(make_policy(**changes), known(None), NOW) == 1


def test_evidence_that_expires_or_is_gone_ends_the_stream():
    policy = make_policy()
    mask = policy.vocabulary.zone_mask(["eu"])
    book, _, _, _ = enter(policy, evidence=Evidence(mask, mask, 0, NOW + 1))
    assert book.recheck(known(None), NOW) == 0
    assert book.recheck(known(None), NOW + 1) == 1
    book, _, _exchange, _ = enter(policy)
    assert book.recheck(lambda target: None, NOW) == 1


def test_facts_follow_the_ticket_and_a_revoked_request_is_told_so():
    policy = make_policy()
    book, ticket, _, _ = enter(policy, "us")
    facts = replace(make_facts(policy), label=ticket.label, key=ticket.grant)
    assert book.current(ticket, facts) is facts
    tight = make_policy(keys=TIGHT)
    book.adopt(tight, known(None), NOW)
    now = book.current(ticket, facts)
    assert tight.place_of(now.label).process == ("us",) and now.key is grant_of(tight)
    assert replace(now, label=facts.label, key=facts.key) == facts
    ticket.label = now.label
    other = replace(now, key=facts.key)
    assert book.current(ticket, other).key is ticket.grant
    book.adopt(make_policy(keys=[]), known(None), NOW)
    with pytest.raises(ApiError) as refusal:
        book.current(ticket, facts)
    assert (refusal.value.status, refusal.value.code) == (403, POLICY_REVOKED)


def test_what_nobody_read_is_held_to_the_worst_from_the_second_decision_on():
    policy = make_policy()
    _, ticket, _, _ = enter(policy)
    everything = ticket.label
    assert not ticket.hold() and ticket.label == everything
    ticket.unread = policy.tags["phi"]
    assert ticket.hold() and ticket.label == everything.meet(policy.tags["phi"])
    assert ticket.unread is None and not ticket.hold()
    ticket.unread = policy.tags["any"]
    assert not ticket.hold()


def test_what_nobody_read_keeps_its_meaning_and_other_rules_hold_for_all():
    policy = make_policy()
    book, ticket, exchange, _ = enter(policy)
    ticket.unread = policy.tags["us"]
    more = make_policy(zones={"aaa": {}, "eu": {}, "us": {}, "cloud": {"external": True}})
    assert book.adopt(more, known(None), NOW) == 0 and ticket.unread == more.tags["us"]
    assert book.adopt(more, known(None), NOW, more.tags["us"]) == 1
    assert exchange.failure == POLICY_REVOKED and ticket.label == more.tags["us"].meet(ticket.grant.ceiling)


@pytest.mark.parametrize("when", ["other policy", "other grant", "revoked"])
def test_a_redacted_form_found_under_something_else_is_not_taken(when):
    policy = make_policy()
    book, ticket, _, _ = enter(policy)
    ticket.unread = policy.tags["us"]
    before, grant = ticket.label, ticket.grant
    assert book.declassify(ticket, policy.tags["any"], policy, grant)
    assert (ticket.declassified, ticket.label, ticket.unread) == (True, policy.tags["any"], None)
    ticket.declassified, ticket.label = False, before
    if when == "other policy":
        book.adopt(make_policy(), known(None), NOW)
    elif when == "other grant":
        grant = replace(grant, spill=True)
    else:
        ticket.revoked = "gone"
    assert not book.declassify(ticket, policy.tags["any"], policy, grant)
    assert (ticket.declassified, ticket.label) == (False, before)


def test_a_decision_stands_only_while_label_and_grant_do():
    policy = make_policy()
    _, ticket, _, _ = enter(policy)
    facts = make_facts(policy, grant=ticket.grant, label=ticket.label)
    assert ticket.is_as_in(facts)
    for name, value in {"label": Label(2, 2), "grant": replace(ticket.grant), "revoked": "gone"}.items():
        kept = getattr(ticket, name)
        setattr(ticket, name, value)
        assert not ticket.is_as_in(facts)
        setattr(ticket, name, kept)
    assert ticket.is_as_in(facts)


def test_a_request_that_left_is_not_looked_at():
    book, ticket, exchange, _ = enter(make_policy())
    book.leave(ticket)
    book.leave(ticket)
    del ticket
    assert len(book) == 0 and book.adopt(make_policy(keys=[]), known(None), NOW) == 0 and exchange.failure == ""


def test_labels_and_evidence_travel_by_name():
    old, new = Vocabulary(("a", "b"), ("d", "e")), Vocabulary(("b", "c"), ("e",))
    label = Label(old.zone_mask(["a", "b"]), old.zone_mask(["b"]), old.duty_mask(["e"]))
    there = translate_label(label, old, new)
    assert (new.zone_names(there.process), new.zone_names(there.store), new.duty_names(there.duties)) == (("b",), ("b",), ("e",))
    assert translate_label(Label(6, 6, old.duty_mask(["d"])), old, new) == Label(0, 0)
    assert translate_label(Label(6, 6, 0), old, old) == Label(6, 6, 0)
    evidence = translate_evidence(Evidence(old.zone_mask(["a"]), old.zone_mask(["b"]), 3, 7.0), old, new)
    assert (new.zone_names(evidence.process), new.zone_names(evidence.store)) == (("?",), ("b",))
    assert (evidence.duties, evidence.expires) == (new.duty_mask(["e"]), 7.0)


def test_in_flight_evidence_moves_to_the_new_vocabulary():
    policy = make_policy()
    book, ticket, exchange, _ = enter(policy, "eu")
    more = make_policy(zones={"aaa": {}, "eu": {}, "us": {}, "cloud": {"external": True}})
    assert book.adopt(more, known(None), NOW) == 0
    assert more.vocabulary.zone_names(ticket.target.evidence.process) == ("eu",)
    assert exchange.failure == ""


def test_the_fleet_sees_its_targets_as_the_new_policy_does():
    config, policy = make_config(), make_policy()
    fleet = Fleet(5.0)
    replica = make_target(policy, "r", "us")
    cloud = fixed_targets(config, Address("egress", 1), "e1")
    fleet.update([Report(replica), *(Report(target) for target in cloud)])
    fleet.book(replica, 10, NOW)
    fleet.set_saturated(Label(2, 2), ("tiny",), True)
    changed = make_config(zones={"aaa": {}, "eu": {}, "us": {}, "cloud": {"external": True}})
    after = make_policy(zones={"aaa": {}, "eu": {}, "us": {}, "cloud": {"external": True}})
    fleet.adopt(retargeter(changed, policy, after), 7.0)
    view = fleet.view(NOW)
    assert [after.vocabulary.zone_names(t.evidence.process) for t in view.membership.targets] == [("us",), ("cloud",)]
    assert view.loads == (Load(inflight=1, unstarted=1, unstarted_tokens=10), Load())
    assert (view.spilling, view.spend_left_usd, view.membership.targets[1].incarnation) == (frozenset(), 7.0, "provider@e1")
    fleet.adopt(retargeter(make_config(targets=[]), after, policy), 7.0)
    assert [target.id for target in fleet.membership.targets] == ["r"]


def test_tags_are_read_strictly():
    name = b"x-tidegate-residency"
    assert read_tags([(name, b"a, b"), (b"other", b"!"), (name, b"c")]) == ("a", "b", "c")
    assert len(read_tags([(name, b",".join([b"a"] * 16))])) == 16
    for bad in (b"", b"a,", b"a b", b"-a", b"a" * 65, b"\xe9", b",".join([b"a"] * 17)):
        with pytest.raises(ApiError) as refusal:
            read_tags([(name, bad)])
        assert refusal.value.status == 400


def test_every_source_takes_the_meet():
    policy = make_policy()
    grant = grant_of(policy, SPILL_KEY)
    eu, us = policy.tags["eu"], policy.tags["us"]
    assert resolve_label(grant, (), policy) == grant.ceiling
    assert resolve_label(grant, ("phi",), policy, (None, policy.tags["local"])) == policy.tags["phi"]
    with pytest.raises(ApiError) as refusal:
        resolve_label(grant, ("eu",), policy, (us,))
    assert refusal.value.code == "residency_denied"
    with pytest.raises(ApiError) as refusal:
        resolve_label(grant, ("nobody",), policy)
    assert refusal.value.status == 400
    assert ignored_tags(grant_of(policy), ("any", "eu", "local"), policy) == ("any", "local")
    assert ceiling_at(grant, NOW) == grant.ceiling and eu.process


def redacting(residency):
    """A key whose redacted requests may go to eu and us, and the others where `residency` says."""
    tags = {"both": {"process": ["eu", "us"], "store": ["eu", "us"]}, "phi": {"process": ["eu"], "require": ["baa"]}}
    keys = [{"id": "plain", "sha256": digest("tg_test-key"), "residency": residency, "redact": {"then": "both"}}]
    return make_policy(keys=keys, residency={"tags": tags}, classify={"rules": [{"if": ["iban"], "meet": "phi"}]})


def test_what_a_key_may_do_redacted_is_nothing_for_its_other_requests():
    book, _, exchange, _ = enter(redacting("both"))
    assert book.adopt(redacting("us"), known(None), NOW) == 1
    assert exchange.failure == POLICY_REVOKED


def test_a_redacted_request_keeps_what_its_key_may_do_redacted():
    policy = redacting("us")
    book, ticket, exchange, _ = enter(policy, "eu")
    assert book.declassify(ticket, policy.tags["both"], policy, ticket.grant)
    assert book.adopt(redacting("us"), known(None), NOW) == 0
    assert exchange.failure == "" and not ticket.revoked


@pytest.mark.parametrize(("later", "cut"), [(0.0, 1), (-0.001, 0)])
def test_a_key_ends_at_the_very_second_it_names(later, cut):
    ends = [{"id": "plain", "sha256": digest("tg_test-key"), "expires": "2027-05-01"}]
    policy = make_policy(keys=ends)
    book, _, exchange, _ = enter(policy)
    assert book.recheck(known(policy), next(iter(policy.keys.values())).expires + later) == cut
    assert exchange.failure == (POLICY_REVOKED if cut else "")


@pytest.mark.parametrize(("models", "cut"), [(["tiny"], 0), (["big"], 1)])
def test_a_key_that_is_bound_to_models_keeps_those(models, cut):
    book, _, exchange, _ = enter(make_policy())
    bound = [{"id": "plain", "sha256": digest("tg_test-key"), "models": models}]
    assert book.adopt(make_policy(keys=bound), known(None), NOW) == cut
    assert exchange.failure == (POLICY_REVOKED if cut else "")
