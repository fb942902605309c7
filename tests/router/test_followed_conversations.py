"""What one part of residency means for another: conversations and explain, redaction and stored keys under a changing policy."""

from __future__ import annotations

import time

from msgspec.structs import replace

from router.identity.scopes import bearer_grant
from router.residency.admission import permission_for
from router.residency.guard import REDACTED, STORED, Place
from router.residency.guard_copy import ceilings_of, copy_for_guards
from router.residency.inflight import InFlight
from tests.router.builders import grant_of, make_policy
from tests.router.conftest import KEY, open_front_door


async def test_a_follow_up_stays_where_its_conversation_was_kept_and_explain_says_so():
    first = [{"role": "user", "content": "json 3 the patient's story"}]
    follow = [*first, {"role": "assistant", "content": "I see."}, {"role": "user", "content": "json 3 and now?"}]
    async with open_front_door({"a": "us", "b": "eu"}) as door:
        path, headers = "/v1/chat/completions", {"x-tidegate-residency": "eu"}
        await door.client.post(path, json={"model": "m", "messages": first}, headers=headers)
        for _ in range(6):
            answer = await door.client.post(path, json={"model": "m", "messages": follow})
            assert answer.headers["x-tidegate-zone"] == "eu"
        auth = {"authorization": f"Bearer {KEY}"}
        asked = {"model": "m", "messages": follow}
        explained = (await door.client.post("/tidegate/v1/explain", json=asked, headers=auth)).json()
        assert explained["chosen"]["zone"] == "eu" and explained["label"]["sources"]["conversation"] == "conversation"
        asked = {"model": "m", "messages": [{"role": "user", "content": "something else"}]}
        explained = (await door.client.post("/tidegate/v1/explain", json=asked, headers=auth)).json()
        assert "conversation" not in explained["label"]["sources"] and {"eu", "us"} <= set(explained["label"]["process"])


def test_a_redacted_request_keeps_its_own_ceiling_while_the_policy_is_asked_again():
    policy = make_policy()
    grant = replace(grant_of(policy), redacted=policy.tags["any"])
    policy.keys[grant.digest] = grant
    book = InFlight(policy)
    ticket = book.enter(grant, (), policy.tags["eu"])
    assert book.declassify(ticket, policy.tags["any"], policy, ticket.grant)
    book.recheck(lambda target: None, time.time())
    assert ticket.label == policy.tags["any"] and not ticket.revoked
    permission = permission_for("r", ticket, "tiny", "i", policy.epoch, "", 0.0)
    assert permission.key == grant.id + REDACTED
    ceilings = copy_for_guards(policy, 1.0).keys
    assert ceilings[permission.key].ceiling == policy.label_text(policy.tags["any"])
    assert ceilings[grant.id].ceiling == policy.label_text(grant.ceiling) != ceilings[permission.key].ceiling
    policy.keys[grant.digest] = replace(grant, redacted=None)
    book.recheck(lambda target: None, time.time())
    assert ticket.revoked, "the leave to redact was taken back"


def test_a_key_of_the_store_goes_on_while_it_is_valid_and_guards_decide_with_its_own_ceiling():
    policy = make_policy()
    stored = replace(grant_of(policy), id="plain", digest=b"", guard_id=STORED + "plain", ceiling=policy.tags["us"])
    book, valid = InFlight(policy), {"plain": stored}
    book.find_outside = lambda grant: valid.get(grant.id)
    ticket = book.enter(stored, (), stored.ceiling)
    book.recheck(lambda target: None, time.time())
    assert not ticket.revoked and ticket.grant is stored
    permission = permission_for("r", ticket, "tiny", "i", policy.epoch, policy.label_text(policy.tags["any"]), 0.0)
    copy = copy_for_guards(policy, 1.0, ceilings_of(valid.values(), policy))
    assert copy.refuses(permission, Place(("us",), ("us",)), 0.0) is None
    # The signature alone opens nothing: neither the name without the store, nor a wider label that a router has signed.
    assert copy.refuses(permission, Place(("eu",), ("eu",)), 0.0) is not None
    assert "does not know this key" in copy_for_guards(policy, 1.0).refuses(permission, Place(("us",), ("us",)), 0.0)
    valid.clear()
    book.recheck(lambda target: None, time.time())
    assert ticket.revoked


def test_what_guards_know_of_stored_keys_is_small_and_the_same_everywhere():
    policy = make_policy()
    tags = [policy.tags["us"], policy.tags["eu"], policy.tags["local"]]
    grants = [
        replace(grant_of(policy), id=f"k{i}", digest=b"", guard_id=f"{STORED}k{i}", ceiling=tags[i % 3]) for i in range(3000)
    ]
    ceilings = ceilings_of(grants, policy)
    assert (len(ceilings.ceilings), len(ceilings.keys)) == (3, 3000)
    assert ceilings_of(reversed(grants), policy) == ceilings
    for grant in grants[:30]:
        assert ceilings.find(grant.guard_id).ceiling == policy.label_text(grant.ceiling)
    changed = ceilings_of([replace(grants[0], ceiling=policy.tags["eu"]), *grants[1:]], policy)
    assert changed.digest != ceilings.digest
    stamps = {copy_for_guards(policy, 1.0, known).stamp for known in (ceilings, changed, ceilings_of([], policy))}
    assert len(stamps) == 3 and policy.epoch in stamps


def test_two_stored_keys_under_one_name_get_in_nowhere_and_a_rotated_one_does():
    policy = make_policy()
    one = replace(grant_of(policy), digest=b"", guard_id=STORED + "plain")
    rotated = ceilings_of([one, one], policy)
    assert rotated.find(one.guard_id).ceiling == policy.label_text(one.ceiling)
    confused = ceilings_of([one, replace(one, ceiling=policy.tags["us"])], policy)
    assert not Place(("us",), ("us",)).is_allowed_by(Place.from_text(confused.find(one.guard_id).ceiling))


def test_a_tokens_tenant_brings_its_own_tags_in_the_router_in_the_guard_and_when_the_policy_is_asked_again():
    policy = make_policy(residency={"tags": {"phi": {"process": ["eu"], "require": ["baa"]}}, "tenants": {"clinic": ["phi"]}})
    grant = grant_of(policy)
    bearer = bearer_grant(grant, "jwt-1", "clinic", None, policy)
    book = InFlight(policy)
    ticket = book.enter(bearer, (), bearer.ceiling)
    book.recheck(lambda target: None, time.time())
    assert ticket.grant == bearer and not ticket.revoked
    permission = permission_for("r", ticket, "tiny", "i", policy.epoch, policy.label_text(policy.tags["any"]), 0.0)
    copy = copy_for_guards(policy, 1.0)
    assert copy.refuses(permission, Place(("eu",), ("eu",), ("baa",)), 0.0) is None
    assert copy.refuses(permission, Place(("us",), ("us",)), 0.0) is not None
