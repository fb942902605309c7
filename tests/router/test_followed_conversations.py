"""What one part of residency means for another: conversations and explain, redaction and stored keys under a changing policy."""

from __future__ import annotations

import time

from msgspec.structs import replace

from router.residency.admission import permission_for
from router.residency.guard import OUTSIDE, REDACTED, ROUTER
from router.residency.guard_copy import copy_for_guards
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
    ticket.declassify(policy.tags["any"])
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


def test_a_key_of_the_store_goes_on_while_it_is_valid_and_guards_know_it_as_one_from_outside():
    policy = make_policy()
    stored = replace(grant_of(policy), id="stored", digest=b"", guard_id=OUTSIDE)
    book, valid = InFlight(policy), {"stored": stored}
    book.find_outside = lambda grant: valid.get(grant.id)
    ticket = book.enter(stored, (), stored.ceiling)
    book.recheck(lambda target: None, time.time())
    assert not ticket.revoked and ticket.grant is stored
    assert permission_for("r", ticket, "tiny", "i", policy.epoch, "", 0.0).key == OUTSIDE
    assert {OUTSIDE, ROUTER} <= copy_for_guards(policy, 1.0).keys.keys()
    valid.clear()
    book.recheck(lambda target: None, time.time())
    assert ticket.revoked
