"""Only a changed payload may go further, only where the key says so, and never further than the request's own tags."""

from __future__ import annotations

from typing import Any

from router.residency.classify.rule import Verdict
from router.residency.classify.scan import Scanner
from router.residency.declassify import declassify
from tests.router.builders import KEY, digest, grant_of, make_policy

SCANNER = Scanner()
IBAN = "DE89370400440532013000"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": f"pay {IBAN}"}]}
CHAT = "/v1/chat/completions"
POLICY = make_policy(keys=[{"id": "plain", "sha256": digest(KEY), "redact": {"then": "any"}}])
GRANT = grant_of(POLICY)
FOUND = Verdict(POLICY.tags["eu"], ("iban",))


async def test_a_redacted_request_may_go_where_the_key_says():
    made = await declassify(BODY, CHAT, GRANT, FOUND, [], SCANNER)
    assert made is not None and made.label == POLICY.tags["any"]
    assert IBAN not in str(made.body) and IBAN not in repr(made) and IBAN in str(BODY)


async def test_the_requests_own_tags_and_its_conversation_still_hold():
    made = await declassify(BODY, CHAT, GRANT, FOUND, [POLICY.tags["local"]], SCANNER)
    assert made is not None and made.label == POLICY.tags["local"]
    assert await declassify(BODY, CHAT, GRANT, FOUND, [POLICY.tags["eu"]], SCANNER) is None
    assert await declassify(BODY, CHAT, GRANT, FOUND, [POLICY.tags["eu"], POLICY.tags["us"]], SCANNER) is None


async def test_nothing_is_redacted_without_leave_or_without_certainty():
    plain = grant_of(make_policy())
    assert await declassify(BODY, CHAT, plain, FOUND, [], SCANNER) is None
    assert await declassify(BODY, CHAT, GRANT, Verdict(FOUND.label, FOUND.kinds, "budget"), [], SCANNER) is None
    assert await declassify(BODY, CHAT, GRANT, Verdict(FOUND.label), [], SCANNER) is None
    assert await declassify(BODY, "/v1/responses", GRANT, FOUND, [], SCANNER) is None
    opaque = {**BODY, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}
    assert await declassify(opaque, CHAT, GRANT, FOUND, [], SCANNER) is None
