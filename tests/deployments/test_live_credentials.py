"""Keys in files can be rotated while the egress and the routers run."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from deployments.credentials import LiveCredentials, read_credential
from deployments.server_gauges import ServerGauges
from router.config import ConfigError, Credential
from router.fixed_targets import fixed_targets
from router.placement.targets import Report
from router.wire.tls import TlsContexts
from tests.router.builders import make_config
from tests.router.conftest import open_front_door


def make(tmp_path: Path) -> LiveCredentials:
    target = {
        "id": "p",
        "kind": "cloud",
        "url": "https://x",
        "zone": "cloud",
        "models": {"tiny": "t"},
        "credential": {"file": "key"},
    }
    return LiveCredentials(make_config(targets=[target]), tmp_path, "cloud")


def test_a_changed_file_is_read_anew_and_a_lost_one_is_not(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text("first\n")
    live = make(tmp_path)
    assert (live["p"], list(live), len(live), live.get("q")) == ("first", ["p"], 1, None)
    (tmp_path / "new").write_text("second\n")
    (tmp_path / "new").rename(file)
    assert live["p"] == "second"
    (tmp_path / "new").write_text("\n")
    (tmp_path / "new").rename(file)
    assert live["p"] == "second"
    (tmp_path / "new").write_text("third\nx-other: header\n")
    (tmp_path / "new").rename(file)
    assert live["p"] == "second"
    file.unlink()
    assert live["p"] == "second" and "second" not in repr(live)


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path):
    with pytest.raises(ConfigError, match="credential"):
        make(tmp_path)


def test_a_credential_that_is_not_utf_8_is_named_and_not_shown(tmp_path):
    (tmp_path / "token").write_bytes("a-token".encode("utf-16"))
    with pytest.raises(ConfigError, match="is not UTF-8") as caught:
        read_credential(Credential(file="token"), tmp_path, "provider")
    assert caught.value.__suppress_context__ and len(caught.value.args) == 1


@pytest.mark.parametrize("value", ["two\nlines", "a\rb", "a\0b", "schlüssel"])
def test_a_credential_that_no_header_can_hold_is_refused_and_not_shown(tmp_path, value, monkeypatch):
    (tmp_path / "token").write_bytes(value.encode())
    with pytest.raises(ConfigError, match="more than one line") as caught:
        read_credential(Credential(file="token"), tmp_path, "provider")
    assert value not in str(caught.value)


async def test_a_servers_key_that_is_rotated_is_the_next_requests(tmp_path):
    (tmp_path / "key").write_text("first")
    target = {"id": "a", "kind": "server", "vouched": True, "url": "http://127.0.0.1:9", "zone": "eu", "models": {"m": "m"}}
    config = make_config(targets=[{**target, "credential": {"file": "key"}}])
    live = LiveCredentials(config, tmp_path, "server")
    gauges = ServerGauges(config, live, TlsContexts(tmp_path))
    async with open_front_door({"a": "eu"}) as door:
        door.state._credentials = live
        reports = [Report(replace(found, secret="a")) for found in door.state.fleet.membership.targets]
        door.state.take_reports(reports)
        for key in ("first", "second"):
            (tmp_path / "new").write_text(key)
            (tmp_path / "new").rename(tmp_path / "key")
            assert (await door.chat("hello")).status_code == 200
            assert door.engines["a"].requests[-1]["headers"]["authorization"] == f"bearer {key}"  # as the engine notes it
    named = [Report(found) for found in fixed_targets(config, None, "")]
    gauges.fill(named)
    [asked] = gauges._servers.values()
    gauges.fill(named)
    assert list(gauges._servers.values()) == [asked]
    (tmp_path / "key").write_text("third")
    gauges.fill(named)
    [anew] = gauges._servers.values()
    assert (asked.token, anew.token, gauges._closing) == ("second", "third", [asked.client])
    await gauges._close()
    await anew.client.aclose()
