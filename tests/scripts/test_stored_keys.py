"""`tidegate keys` with a store, and routers that see what it does."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tidegate.cli import app
from tidegate.keys import is_well_formed
from typer.testing import CliRunner

from router.compiled import compile_policy
from router.config import load_file
from router.identity.keys import authenticate
from router.identity.limits import LimitReached, Limits
from router.identity.stored import Shared, open_shared
from router.policy import KeyGrant
from router.response_cache.rule import CacheRule
from router.wire.errors import ApiError

RUNNER = CliRunner()


@pytest.fixture
def configured(home, config_file) -> Path:
    (home.keys).mkdir(parents=True)
    (home.keys / "quickstart.sha256").write_text("0" * 63 + "1  quickstart\n")
    return config_file


def run(*arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["keys", *arguments])
    return result.exit_code, result.output


def created(*arguments: str) -> str:
    code, text = run("create", *arguments, "--stored")
    assert code == 0, text
    return text.strip()


def test_a_stored_key_is_shown_once_and_nowhere_kept(home, configured):
    key = created("app", "--tenant", "t", "--requests-per-minute", "5", "--model", "m")
    assert is_well_formed(key)
    row = json.loads(run("list")[1])
    assert (row["id"], row["tenant"], row["state"]) == ("app", "t", "valid")
    assert (row["requests_per_minute"], row["models"]) == (5, ["m"])
    for file in home.root.rglob("*"):
        assert not file.is_file() or key.split("_")[1].encode() not in file.read_bytes()
    assert (home.keys / "pepper").stat().st_mode & 0o777 == 0o600


def test_every_scope_of_a_stored_key_is_kept(home, configured):
    scopes = ("--cidr", "10.0.0.0/8", "--cidr", "2001:db8::/32", "--priority", "low", "--residency", "any", "--spill")
    created("app", *scopes, "--model", "small", "--expires", "2999-01-01T12:00+02:00")
    row = json.loads(run("list")[1])
    assert (row["cidr"], row["priority"], row["spill"]) == (["10.0.0.0/8", "2001:db8::/32"], "low", True)
    assert (row["models"], row["residency"], row["expires"]) == (["small"], ["any"], "2999-01-01T10:00:00+00:00")


def test_a_stored_key_takes_part_in_the_response_cache(home, configured):
    document = yaml.safe_load(configured.read_text())
    document["applications"][0]["args"]["cache"] = {"zones": ["local"], "ttl_s": 9}
    configured.write_text(yaml.safe_dump(document))
    key = created("app", "--cache")
    config = load_file(configured)
    policy = compile_policy(config, home.root)
    shared = open_shared(config, policy, home.root, "router-a")
    assert shared is not None
    try:
        grant = authenticate([(b"x-api-key", key.encode())], policy.keys, shared.keys)
        assert grant.cache == CacheRule(False, False, 9)
    finally:
        shared.close()


def test_routers_take_and_refuse_keys_while_they_run(home, configured):
    config = load_file(configured)
    policy = compile_policy(config, home.root)
    shared = open_shared(config, policy, home.root, "r1")
    assert shared is not None

    def grant(key: str):
        return authenticate([(b"authorization", b"Bearer " + key.encode())], policy.keys, shared.keys)

    def wait_until(key: str, known: bool) -> None:
        end, found = time.monotonic() + 30, not known
        while found != known:
            assert time.monotonic() < end, "never"
            time.sleep(0.02)
            try:
                grant(key)
                found = True
            except ApiError:
                found = False

    try:
        old = created("app", "--daily-tokens", "100", "--tenant", "t")
        wait_until(old, True)
        assert grant(old).tenant == "t" and grant(old).limits[0].amount == 100
        with pytest.raises(ApiError):
            grant(old[:-1] + ("0" if old[-1] != "0" else "1"))
        code, new = run("rotate", "app", "--overlap-hours", "1")
        assert code == 0
        wait_until(new.strip(), True)
        assert grant(old).limits == grant(new.strip()).limits
        assert shared.keys.by_id(grant(old)) == grant(new.strip()), "what is at work under the old one goes on under the new"
        assert run("revoke", "app")[0] == 0
        wait_until(old, False)
        wait_until(new.strip(), False)
    finally:
        shared.close()


@contextlib.contextmanager
def four_routers(home, config) -> Iterator[list[Shared]]:
    """Of the same configuration, over one store."""
    opened = [open_shared(config, compile_policy(config, home.root), home.root, f"r{number}") for number in range(4)]
    found = [shared for shared in opened if shared is not None]
    try:
        assert len(found) == 4
        yield found
    finally:
        for shared in found:
            shared.close()


def take_three(shared: Shared, grant: KeyGrant) -> int:
    """How many of three requests, sent at once, before any heartbeat, a router lets through."""
    passed = 0
    for _ in range(3):
        with contextlib.suppress(LimitReached):
            Limits(shared.books).reserve(grant.limits, 1, 1, time.time())
            passed += 1
    return passed


def test_a_new_keys_limit_holds_over_all_replicas_from_its_first_request_on(home, configured):
    with four_routers(home, load_file(configured)) as routers:
        key, passed = created("app", "--requests-per-minute", "2", "--daily-tokens", "9000").encode(), 0
        for shared in routers:
            deadline = time.monotonic() + 30
            while (grant := shared.keys.find(key, time.time())) is None and time.monotonic() < deadline:
                time.sleep(0.001)
            assert grant is not None, "the key never came to this router"
            passed += take_three(shared, grant)
    assert passed <= 2


def test_a_limit_that_a_new_policy_brings_holds_over_all_replicas_from_the_first_request_on(home, configured):
    config = load_file(configured)
    changed = config.model_copy(update={"keys": [config.keys[0].model_copy(update={"requests_per_minute": 2})]})
    policy, passed = compile_policy(changed, home.root), 0
    with four_routers(home, config) as routers:
        for shared in routers:
            shared.keys.adopt(changed, policy)
            passed += take_three(shared, next(iter(policy.keys.values())))
    assert passed <= 2


def test_a_rotation_without_overlap_ends_the_old_key_and_an_expiry_ends_any(home, configured, monkeypatch):
    config = load_file(configured)
    policy = compile_policy(config, home.root)
    old = created("app")
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", lambda: 1_577_000_000.0)
        ended = created("ended", "--expires", "2020-01-01")
    run("rotate", "app", "--overlap-hours", "0")
    shared = open_shared(config, policy, home.root, "r1")
    assert shared is not None
    try:
        for key in (old, ended):
            with pytest.raises(ApiError):
                authenticate([(b"x-api-key", key.encode())], policy.keys, shared.keys)
    finally:
        shared.close()
    assert {json.loads(line)["state"] for line in run("list")[1].splitlines()} == {"valid", "expired"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "x", "--stored", "--residency", "nowhere"), "unknown tag `nowhere`"),
        (("create", "x", "--stored", "--model", "smal"), "unknown model `smal`; did you mean `small`"),
        (("create", "quickstart", "--stored"), "the configuration has a key"),
        (("create", "x", "--stored", "--expires", "soon"), "is no date"),
        (("create", "x", "--stored", "--expires", "2020-01-01"), "never be valid"),
        (("create", "x", "--stored", "--cidr", "10.0.0.0/99"), "error: cidr: `10.0.0.0/99` is no block"),
        (("create", "x", "--stored", "--cidr", "10.0.0.1/8"), "did you mean `10.0.0.0/8`"),
        (("create", "x", "--stored", "--priority", "urgent"), "'high', 'normal' or 'low'"),
        (("create", "x", "--stored", "--cache"), "there is no cache: say where answers may be kept"),
        (("create", "x", "--spill"), "with --stored"),
        (("create", "x", "--cidr", "10.0.0.0/8"), "with --stored"),
        (("create", "x", "--priority", "low"), "with --stored"),
        (("rotate", "missing"), "no valid key `missing`"),
        (("revoke", "missing"), "no valid key `missing`"),
    ],
)
def test_wrong_input_is_said_so(configured, arguments, message):
    code, text = run(*arguments)
    assert code == 1 and message in text


def test_an_overlap_that_no_calendar_has_is_refused_and_the_keys_can_still_be_listed(home, configured):
    created("app")
    for overlap in ("1e300", "inf", "nan"):
        assert run("rotate", "app", "--overlap-hours", overlap)[0] == 2
    assert run("list")[0] == 0


def test_a_name_is_taken_only_while_its_key_is_valid(configured):
    created("app")
    code, text = run("create", "app", "--stored")
    assert code == 1 and "rotate or revoke it" in text
    assert run("revoke", "app")[0] == 0
    created("app")


def test_what_is_done_to_keys_stands_in_the_audit_log(home, configured):
    created("app")
    run("rotate", "app")
    run("revoke", "app")
    result = RUNNER.invoke(app, ["audit", "search", "--id", "app"])
    assert [json.loads(line)["event"] for line in result.output.splitlines()] == ["key.create", "key.rotate", "key.revoke"]
    assert RUNNER.invoke(app, ["audit", "verify"]).exit_code == 0
