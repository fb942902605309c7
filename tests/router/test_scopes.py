"""Where from, until when and how urgently: scopes of keys in the configuration, in the store and in tokens, over the wire."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from router.compiled import compile_policy
from router.config import ConfigError, Jwt, parse_config
from router.decision import Facts
from router.identity.keys import WrongSource, authenticate, check_source
from router.identity.limit import Kind
from router.identity.narrowing import Narrowing
from router.identity.networks import Networks, compile_networks, packed
from router.identity.priority import CLASSES
from router.identity.scopes import bearer_grant
from router.identity.stored import compile_stored
from router.identity.tokens import TokenVerifier
from router.ledger import records
from router.policy import KeyGrant, Relaxed
from router.residency.inflight import InFlight
from router.residency.resolve import resolve_label
from router.store.keys import StoredKey
from router.wire.errors import ApiError
from router.wire.request import priority_of
from tests.router.builders import KEY, digest, grant_of, make_config, make_policy
from tests.router.conftest import KEY as DOOR_KEY
from tests.router.conftest import OTHER_KEY, open_front_door

SCOPED = {"id": "scoped", "sha256": digest(KEY), "cidr": ["10.0.0.0/8", "2001:db8::/32"], "priority": "low"}


def bearing(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def stored_grant(scopes: dict) -> KeyGrant:
    config = make_config()
    text = json.dumps({"id": "s", "sha256": "0" * 64, **scopes}).encode()
    return compile_stored(StoredKey(b"", "s", "default", text, 0.0), config, compile_policy(config, Path("/")))


def test_a_stored_key_and_one_of_the_configuration_have_the_same_scopes():
    scopes = {"cidr": ["10.0.0.0/8"], "priority": "low", "models": ["small"], "residency": "eu", "spill": True}
    configured = grant_of(make_policy(keys=[{"id": "s", "sha256": digest(KEY), **scopes}]))
    stored = stored_grant(scopes)
    for name in ("networks", "priority", "models", "ceiling", "spill"):
        assert getattr(stored, name) == getattr(configured, name)
    assert stored.networks == compile_networks(["10.0.0.0/8"]) and CLASSES[stored.priority] == "low"
    assert stored.models == {"tiny"} and stored.spill


@pytest.mark.parametrize(
    ("peer", "passes"),
    [("10.1.2.3", True), ("2001:db8::1", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), ("::1", False), (None, False)],
)
def test_a_key_bound_to_networks_opens_nothing_elsewhere(peer, passes):
    grant = grant_of(make_policy(keys=[SCOPED]))
    assert grant.networks is not None
    if passes:
        check_source(grant, grant.networks, peer, [], Networks())
        return
    with pytest.raises(WrongSource) as refusal:
        check_source(grant, grant.networks, peer, [(b"x-forwarded-for", b"10.1.2.3")], Networks())
    assert (refusal.value.status, refusal.value.code, refusal.value.key) == (401, "ip_not_authorized", "scoped")


def test_an_expired_key_of_the_configuration_opens_nothing_and_says_why():
    for expires, valid in (("2020-01-01", False), ("2999-01-01", True), ("2020-01-01T00:00:00+02:00", False)):
        policy = make_policy(keys=[{"id": "k", "sha256": digest(KEY), "expires": expires}])
        if valid:
            assert authenticate(bearing(KEY), policy.keys).id == "k"
            continue
        with pytest.raises(ApiError, match="has expired") as refusal:
            authenticate(bearing(KEY), policy.keys)
        assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"cidr": ["10.0.0.1/8"]}, "did you mean `10.0.0.0/8`"),
        ({"cidr": []}, "keys[0].cidr"),
        ({"cidr": "10.0.0.0/8"}, "keys[0].cidr"),
        ({"expires": "soon"}, "is no date"),
        ({"priority": "urgent"}, "'high', 'normal' or 'low'"),
        ({"cidrs": ["10.0.0.0/8"]}, "did you mean `cidr`"),
    ],
)
def test_a_scope_that_cannot_be_read_is_refused_at_load(scope, message):
    with pytest.raises(ConfigError) as error:
        make_config(keys=[{"id": "k", "sha256": digest(KEY), **scope}])
    assert message in str(error.value)


def test_a_date_without_quotes_is_a_date():
    data = make_config().model_dump()
    data["keys"] = [yaml.safe_load(f"{{id: k, sha256: '{digest(KEY)}', expires: 2020-01-01}}")]
    grant = grant_of(compile_policy(parse_config(data), Path("/")))
    assert grant.expires == 1_577_836_800.0


def test_a_proxy_protocol_without_proxies_is_refused():
    with pytest.raises(ConfigError, match="needs `trusted_proxies`"):
        make_config(listen={"proxy_protocol": True})
    with pytest.raises(ConfigError, match="is no block"):
        make_config(listen={"trusted_proxies": ["lb.example"]})


def test_what_a_key_may_do_survives_the_audit_log():
    grant = grant_of(make_policy(keys=[{**SCOPED, "expires": "2999-01-01"}]))
    assert msgspec.msgpack.decode(records.pack(grant), type=KeyGrant) == grant
    older = msgspec.msgpack.decode(records.pack(grant))
    for name in ("networks", "expires", "priority", "narrowing"):
        del older[name]
    assert msgspec.convert(older, KeyGrant).networks is None, "logs of before can still be read"
    assert "priority" in Facts.__struct_fields__


# -- priority


@pytest.mark.parametrize("own", CLASSES)
@pytest.mark.parametrize("asked", CLASSES)
def test_a_header_lowers_the_priority_and_never_raises_it(own, asked):
    found = priority_of([(b"x-tidegate-priority", asked.encode())], CLASSES.index(own))
    assert found == max(CLASSES.index(own), CLASSES.index(asked))
    assert priority_of([], CLASSES.index(own)) == CLASSES.index(own)


async def test_the_priority_reaches_the_receipt_and_nonsense_is_refused():
    keys = [{"id": "front", "sha256": digest(DOOR_KEY), "priority": "normal"}]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        for header, expected in ((None, "normal"), ("low", "low"), ("high", "normal")):
            answer = await door.chat("hello", headers={} if header is None else {"x-tidegate-priority": header})
            assert door.receipt(answer)["priority"] == expected
        wrong = await door.chat("hello", headers={"x-tidegate-priority": "urgent"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-tidegate-priority")


# -- tokens

SIGNER = RSAKey.generate_key(2048, {"kid": "r"})
TOKEN_POLICY = {
    "keys": [{"id": "idp", "sha256": digest(KEY), "residency": "any", "spill": True, "cidr": ["10.0.0.0/8"], "daily_tokens": 50}],
    "residency": {"tags": {"phi": {"process": ["eu"], "require": ["baa"]}}, "tenants": {"clinic": ["eu"]}},
    "tenants": {"clinic": {"daily_tokens": 9}},
}


def token_grant(tmp_path: Path, scopes: object, team: str = "lab", **key: object) -> KeyGrant | None:
    policy = make_policy(**{**TOKEN_POLICY, "keys": [{**TOKEN_POLICY["keys"][0], **key}]})
    (tmp_path / "jwks.json").write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    fields = {"issuer": "https://idp", "audience": "tidegate", "jwks_file": "jwks.json", "key": "idp"}
    options = Jwt.model_validate({**fields, "tenant_claim": "team", "scopes_claim": "tidegate"})
    claims = {"iss": "https://idp", "aud": "tidegate", "sub": "alice", "exp": int(time.time()) + 600, "team": team}
    if scopes is not None:
        claims["tidegate"] = scopes
    token = jwt.encode({"alg": "RS256", "kid": "r"}, claims, SIGNER).encode()
    return TokenVerifier(options, policy, tmp_path).find(token, time.time())


def test_a_token_narrows_every_scope_of_its_key(tmp_path):
    policy = make_policy(**TOKEN_POLICY)
    scopes = {
        "models": ["small"],
        "residency": ["us"],
        "spill": False,
        "cidr": ["10.1.0.0/16", "192.0.2.0/24"],
        "priority": "low",
    }
    grant = token_grant(tmp_path, scopes)
    assert grant is not None
    assert grant.models == {"tiny"} and not grant.spill and CLASSES[grant.priority] == "low"
    assert grant.ceiling == policy.tags["us"] and grant.ceiling_tags == ("any", "us")
    assert grant.networks is not None
    held = {text: grant.networks.holds(packed(text)) for text in ("10.1.2.3", "10.2.2.3", "192.0.2.1")}
    assert held == {"10.1.2.3": True, "10.2.2.3": False, "192.0.2.1": False}


def test_a_token_widens_nothing(tmp_path):
    wide = {"models": ["auto"], "residency": ["any"], "spill": True, "cidr": ["0.0.0.0/0"], "priority": "high"}
    key = {"models": ["small"], "residency": "eu", "spill": False, "priority": "low"}
    grant, plain = token_grant(tmp_path, wide, **key), token_grant(tmp_path, None, **key)
    assert grant is not None and plain is not None
    for name in ("models", "ceiling", "spill", "priority", "networks"):
        assert getattr(grant, name) == getattr(plain, name)


@pytest.mark.parametrize(
    "scopes",
    [
        "small",
        {"models": "small"},
        {"model": ["small"]},
        {"residency": ["nowhere"]},
        {"cidr": ["x"]},
        {"priority": "urgent"},
        7,
        [],
    ],
)
def test_a_token_whose_scopes_cannot_be_read_opens_nothing(tmp_path, scopes):
    assert token_grant(tmp_path, scopes) is None


def test_a_tokens_tenant_brings_its_own_tags_and_limits(tmp_path):
    clinic, lab = token_grant(tmp_path, None, team="clinic"), token_grant(tmp_path, None, team="lab")
    assert clinic is not None and lab is not None
    policy = make_policy(**TOKEN_POLICY)
    assert clinic.ceiling == policy.tags["eu"] and lab.ceiling == policy.tags["any"]
    assert {(limit.scope, limit.kind, limit.amount) for limit in clinic.limits} == {
        ("key:idp", Kind.TOKENS, 50),
        ("tenant:clinic", Kind.TOKENS, 9),
    }
    assert [limit.scope for limit in lab.limits] == ["key:idp"]


def test_a_token_of_any_tenant_makes_every_tenants_conversations_worth_noting():
    """Its bearer may go on, wider, with what a key of that tenant began."""
    narrow = {"id": "narrow", "sha256": digest("tg_narrow"), "tenant": "clinic", "residency": "eu"}
    fields = {"issuer": "https://idp", "audience": "tidegate", "jwks_file": "jwks.json", "key": "idp"}
    changes = {**TOKEN_POLICY, "keys": [*TOKEN_POLICY["keys"], narrow]}
    policy = make_policy(**changes)
    assert policy.widest["clinic"] == policy.tags["eu"]
    assert make_policy(**changes, jwt=fields).widest == policy.widest
    assert make_policy(**changes, jwt={**fields, "tenant_claim": "team"}).widest["clinic"] == policy.tags["any"]


def test_a_token_ends_with_its_key(tmp_path):
    assert token_grant(tmp_path, None, expires="2020-01-01") is None


def test_a_signed_relaxation_does_not_undo_what_the_token_took_away():
    policy = make_policy(**TOKEN_POLICY)
    relaxed = (Relaxed("r", policy.tags["any"], 0.0, 1e12),)
    grant = msgspec.structs.replace(grant_of(policy), ceiling=policy.tags["eu"], relaxed=relaxed)
    bearer = bearer_grant(grant, "jwt-x", "lab", Narrowing(residency=("eu",)), policy)
    assert resolve_label(bearer, (), policy, now=1.0).is_within(policy.tags["eu"])


def test_a_request_in_flight_keeps_to_its_token_and_ends_with_its_key(tmp_path):
    policy = make_policy(**TOKEN_POLICY)
    grant = token_grant(tmp_path, {"models": ["small"], "residency": ["us"]}, team="clinic-2")
    assert grant is not None
    inflight = InFlight(policy)
    ticket = inflight.enter(grant, (), grant.ceiling)
    inflight.adopt(policy, lambda target: target.evidence, 1.0)
    assert not ticket.revoked and ticket.grant == grant
    ends = [{**TOKEN_POLICY["keys"][0], "expires": "2027-01-01"}]
    inflight.adopt(make_policy(**{**TOKEN_POLICY, "keys": ends}), lambda target: target.evidence, 1.0)
    assert not ticket.revoked
    inflight.recheck(lambda target: target.evidence, 1_900_000_000.0)
    assert ticket.revoked == "the key is no longer valid"


# -- over the wire


async def test_over_the_wire_the_peer_counts_and_a_header_of_the_client_does_not():
    keys = [
        {"id": "here", "sha256": digest(DOOR_KEY), "cidr": ["127.0.0.0/8"]},
        {"id": "elsewhere", "sha256": digest(OTHER_KEY), "cidr": ["203.0.113.0/24"]},
    ]
    other = {"authorization": f"Bearer {OTHER_KEY}"}
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        assert (await door.chat("hello")).status_code == 200
        for headers in (other, {**other, "x-forwarded-for": "203.0.113.7"}):
            refused = await door.chat("hello", headers=headers)
            assert refused.status_code == 401 and refused.headers["x-tidegate-reason"] == "refused: ip_not_authorized"
            error = refused.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["code"], error["type"]) == ("ip_not_authorized", "authentication_error")
            assert "203.0.113" not in error["message"], "a thief is not told where to go"
            assert (await door.client.get("/v1/models", headers=headers)).status_code == 401
            explained = await door.client.post("/tidegate/v1/explain", json={"model": "m", "messages": []}, headers=headers)
            assert explained.status_code == 401
        assert not door.engines["a"].requests[1:]


async def test_over_the_wire_a_trusted_proxy_speaks_for_its_clients():
    keys = [{"id": "front", "sha256": digest(DOOR_KEY), "cidr": ["203.0.113.0/24"]}]
    listen = {"trusted_proxies": ["127.0.0.1"]}
    async with open_front_door({"a": "eu"}, keys=keys, listen=listen) as door:
        for forwarded, status in (
            ("203.0.113.7", 200),
            ("203.0.113.7, 192.0.2.1", 401),
            ("192.0.2.1, 203.0.113.7", 200),
            (None, 401),
        ):
            answer = await door.chat("hello", headers={} if forwarded is None else {"x-forwarded-for": forwarded})
            assert answer.status_code == status, forwarded


async def test_over_the_wire_a_proxy_header_is_the_clients_address():
    keys = [{"id": "front", "sha256": digest(DOOR_KEY), "cidr": ["203.0.113.0/24"]}]
    listen = {"trusted_proxies": ["127.0.0.1"], "proxy_protocol": True}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {DOOR_KEY}\r\nx-forwarded-for: 203.0.113.9\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()

    async def send(*pieces: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer[:12]

    async with open_front_door({"a": "eu"}, keys=keys, listen=listen) as door:
        known = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8000\r\n"
        assert await send(known + request) == b"HTTP/1.1 200"
        assert await send(known[:9], known[9:] + request[:30], request[30:]) == b"HTTP/1.1 200"
        assert await send(b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 8000\r\n" + request) == b"HTTP/1.1 401"
        assert await send(b"PROXY UNKNOWN\r\n" + request) == b"HTTP/1.1 401"
        listing = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: {DOOR_KEY}\r\nconnection: close\r\n\r\n".encode()
        assert await send(known + listing) == b"HTTP/1.1 200"
        assert await send(b"PROXY UNKNOWN\r\n" + listing) == b"HTTP/1.1 401"
        assert await send(request) == b"HTTP/1.1 400", "this proxy is declared to send a header"
        packed_address = socket.inet_aton("203.0.113.7") + socket.inet_aton("127.0.0.1") + b"\x12\x67\x1f\x40"
        assert await send(b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + packed_address + request) == b"HTTP/1.1 200"
