"""JWT bearers: what opens, and everything that must not."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from router.config import ConfigError, Jwt
from router.identity.keys import authenticate
from router.identity.tokens import TokenVerifier
from router.wire.errors import ApiError
from tests.router.builders import make_policy

POLICY = make_policy()
RSA, EC, OTHER = RSAKey.generate_key(2048, {"kid": "r"}), ECKey.generate_key("P-256", {"kid": "e"}), RSAKey.generate_key(2048)
NOW = int(time.time())
CLAIMS = {"iss": "https://idp", "aud": ["tidegate", "x"], "sub": "alice", "exp": NOW + 7200, "team": "t7"}


def write_keys(path: Path, *keys: RSAKey | ECKey) -> None:
    path.write_text(json.dumps(KeySet(list(keys)).as_dict(private=False)))


def options(**more: object) -> Jwt:
    values = {"issuer": "https://idp", "audience": "tidegate", "jwks_file": "jwks.json", "key": "spiller", **more}
    return Jwt.model_validate(values)


@pytest.fixture
def verifier(tmp_path) -> TokenVerifier:
    write_keys(tmp_path / "jwks.json", RSA, EC)
    return TokenVerifier(options(tenant_claim="team"), POLICY, tmp_path)


def token(key=RSA, header: dict | None = None, **claims: object) -> bytes:
    chosen = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    head = header or {"alg": "ES256" if key is EC else "RS256", "kid": key.kid}
    return jwt.encode(head, chosen, key, algorithms=[head["alg"]]).encode()


@pytest.mark.parametrize("key", [RSA, EC])
def test_a_good_token_has_the_scopes_of_the_configured_key(verifier, key):
    grant = authenticate([(b"authorization", b"Bearer " + token(key))], POLICY.keys, None, verifier)
    assert grant.id.startswith("jwt-") and "alice" not in grant.id
    assert grant.tenant == "t7" and grant.spill
    assert verifier.find(token(key), NOW) == grant


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other"},
        {"iss": None},
        {"aud": "somebody-else"},
        {"aud": None},
        {"exp": NOW - 10},
        {"exp": None},
        {"exp": "never"},
        {"exp": 10**400},
        {"nbf": NOW + 500},
        {"sub": None},
        {"team": None},
        {"team": 7},
        {"team": "x" * 65},
    ],
)
def test_a_wrong_or_missing_claim_opens_nothing(verifier, claims):
    assert verifier.find(token(**claims), NOW) is None


def test_a_token_that_expires_while_it_is_remembered_ends(verifier):
    good = token()
    assert verifier.find(good, NOW) is not None
    assert verifier.find(good, NOW + 7201) is None


def test_only_the_listed_algorithms_and_the_issuers_own_keys_count(verifier, tmp_path):
    unsigned = b".".join([*token().split(b".")[:2], b""])
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "r"}).encode()).rstrip(b"=")
    signed = head + b"." + token().split(b".")[1]
    confused = signed + b"." + base64.urlsafe_b64encode(hmac.digest(RSA.as_pem(private=False), signed, "sha256")).rstrip(b"=")
    for wrong in (unsigned, confused, token(OTHER, {"alg": "RS256", "kid": "r"}), token(header={"alg": "RS512", "kid": "r"})):
        assert verifier.find(wrong, NOW) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_token_opens_nothing_even_beside_a_remembered_one(position, change):
    good = token()
    place = position % len(good)
    changed = bytearray(good)
    changed[place] ^= change
    verifier = test_a_changed_token_opens_nothing_even_beside_a_remembered_one.verifier
    assert verifier.find(good, NOW) is not None
    found = verifier.find(bytes(changed), NOW)
    # The last character of a signature has bits that mean nothing; the same signature is the same permission.
    assert found is None or place in (len(good) - 1,)


@pytest.fixture(autouse=True, scope="module")
def _one_for_all_examples(tmp_path_factory):
    root = tmp_path_factory.mktemp("jwt")
    write_keys(root / "jwks.json", RSA, EC)
    test_a_changed_token_opens_nothing_even_beside_a_remembered_one.verifier = TokenVerifier(options(), POLICY, root)


def test_new_keys_are_read_and_old_ones_forgotten(verifier, tmp_path, monkeypatch):
    good = token()
    assert verifier.find(good, NOW) is not None
    write_keys(tmp_path / "jwks.json", EC)
    os.utime(tmp_path / "jwks.json", (1, 1))
    verifier._looked = 0.0
    monkeypatch.setattr("router.identity.tokens._LOOK_S", -1.0)
    assert verifier.find(good, NOW) is None
    (tmp_path / "jwks.json").write_text("{")
    os.utime(tmp_path / "jwks.json", (2, 2))
    assert verifier.find(token(EC), NOW) is not None, "a damaged file changes nothing"


def test_without_its_file_no_token_is_taken_until_it_is_back(verifier, tmp_path, monkeypatch, caplog):
    good = token()
    assert verifier.find(good, NOW) is not None
    verifier._looked = 0.0
    monkeypatch.setattr("router.identity.tokens._LOOK_S", -1.0)
    (tmp_path / "jwks.json").rename(tmp_path / "away")
    assert verifier.find(good, NOW) is verifier.find(token(EC), NOW) is verifier.find(token(header={"alg": "RS256"}), NOW) is None
    assert [record.message.count("is gone") for record in caplog.records] == [1], "said once"
    assert verifier.under(make_policy()).find(good, NOW) is None, "nor under a new policy, which the router takes nevertheless"
    (tmp_path / "away").rename(tmp_path / "jwks.json")
    assert verifier.find(good, NOW) is not None


@pytest.mark.parametrize("content", ["", "{}", '{"keys": 7}', json.dumps(KeySet([RSA]).as_dict(private=True))])
def test_a_key_set_that_cannot_be_used_is_said_so(tmp_path, content):
    (tmp_path / "jwks.json").write_text(content)
    with pytest.raises(ConfigError, match=r"jwt\.jwks_file"):
        TokenVerifier(options(), POLICY, tmp_path)


def test_a_key_that_is_not_configured_is_said_so(tmp_path):
    write_keys(tmp_path / "jwks.json", RSA)
    with pytest.raises(ConfigError, match=r"jwt\.key: there is no key `nobody`"):
        TokenVerifier(options(key="nobody"), POLICY, tmp_path)


def test_without_a_verifier_a_token_is_an_unknown_key():
    with pytest.raises(ApiError, match="not known"):
        authenticate([(b"authorization", b"Bearer " + token())], POLICY.keys)


def test_claims_of_any_depth_and_any_text_are_no_fault_of_ours(verifier):
    for claims in (b"[" * 3000, b"[]", b"null", b"\xff"):
        assert verifier.find(jws.serialize_compact({"alg": "RS256", "kid": "r"}, claims, RSA).encode(), NOW) is None
    half = json.dumps({**CLAIMS, "sub": "\ud800"}).encode()
    assert verifier.find(jws.serialize_compact({"alg": "RS256", "kid": "r"}, half, RSA).encode(), NOW) is not None
