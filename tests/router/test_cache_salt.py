"""Who may share cached prefixes: one tenant under one label, and never by what a client sends."""

from __future__ import annotations

import itertools
import json

import pytest

from router.config import ConfigError
from router.fixed_targets import fixed_targets
from router.residency.cache_salt import cache_salt, salt_key, with_cache_salt
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY as FRONT_KEY
from tests.router.conftest import OTHER_KEY, open_front_door
from tests.router.test_prefilling import SimulatedHalf

KEY = salt_key(b"s" * 32)


def test_salts_are_stable_and_separate_tenants_labels_secrets_and_clients():
    cases = [
        *itertools.product([KEY, salt_key(b"t" * 32)], ["a", "b", "1:a"], ["eu/eu/", "us/us/", ""], [None, "x", "y"]),
        (KEY, "ab", "c", None),
        (KEY, "a", "bc", None),
        (KEY, "a", "b", "c"),
        (KEY, "a1:b", "", None),
    ]
    salts = [cache_salt(*case) for case in cases]
    assert len(set(salts)) == len(cases)
    assert salts == [cache_salt(*case) for case in cases]
    assert all(len(salt) == 64 and int(salt, 16) >= 0 for salt in salts)


@pytest.mark.parametrize("odd", ["", 7, ["x"], {"a": 1}, True])
def test_what_is_no_salt_of_a_client_counts_as_none(odd):
    assert cache_salt(KEY, "a", "l", odd) == cache_salt(KEY, "a", "l")


def test_a_lone_surrogate_is_a_salt_like_any_other():
    assert cache_salt(KEY, "a", "l", "\ud800") != cache_salt(KEY, "a", "l")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[]}',
        b' \n{ "model" : "m" }',
        b"{}",
        b"{ }",
        b'{"cache_salt":"mine","model":"m"}',
        b'{"a":{"cache_salt":"in"}}',
    ],
)
def test_the_body_gets_the_salt_and_keeps_the_rest(body):
    parsed = json.loads(body)
    assert json.loads(with_cache_salt(body, parsed, "ab" * 32)) == {**parsed, "cache_salt": "ab" * 32}
    if "cache_salt" not in parsed:
        assert body.split(b"{", 1)[1] in with_cache_salt(body, parsed, "ab" * 32)


def test_other_bytes_stay_as_they_were():
    body = b'{"model":"m","n":1.0,"t":"\\u00e9"}'
    salted = with_cache_salt(body, json.loads(body), "cd" * 32)
    assert salted == b'{"cache_salt":"' + b"cd" * 32 + b'",' + body[1:]


def test_an_empty_object_gets_no_comma_whatever_follows_it():
    for body in (b"{}", b"{ }", b"{}\n", b" { } \n"):
        assert json.loads(with_cache_salt(body, {}, "aa")) == {"cache_salt": "aa"}


SERVER = {"id": "s", "kind": "server", "vouched": True, "url": "http://127.0.0.1:1", "zone": "eu", "models": {"tiny": "t"}}
HALF = {"url": "http://127.0.0.1:2"}


@pytest.mark.parametrize(
    ("more", "salted"),
    [
        ({}, False),
        ({"token_ids": True}, True),
        ({"prefill": HALF}, True),
        ({"cache_salt": True}, True),
        ({"token_ids": True, "prefill": HALF, "cache_salt": False}, False),
    ],
)
def test_servers_that_are_vllm_are_salted(more, salted):
    [target] = fixed_targets(make_config(targets=[{**SERVER, **more}]), None, "")
    assert target.salted is salted


def test_a_cloud_target_cannot_be_salted():
    with pytest.raises(ConfigError, match="cache_salt: only a `server`"):
        make_config(targets=[{**SERVER, "kind": "cloud", "url": "https://x.invalid", "cache_salt": True}])


async def test_at_a_pair_no_tenant_meets_anothers_prefixes():
    half = SimulatedHalf()
    keys = [{"id": name, "sha256": digest(key), "tenant": name} for name, key in (("one", FRONT_KEY), ("two", OTHER_KEY))]
    async with open_front_door({"a": "eu"}, halves={"a": half}, keys=keys) as door:
        for key in (FRONT_KEY, OTHER_KEY, FRONT_KEY):
            answer = await door.chat("hello", cache_salt="mine", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        for engine in (half, door.engines["a"]):
            one, two, again = (request["body"]["cache_salt"] for request in engine.requests)
            assert one == again != two and "mine" not in (one, two)
