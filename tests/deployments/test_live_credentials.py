"""Keys in files can be rotated while the egress runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.credentials import LiveCredentials, read_credential
from router.config import ConfigError, Credential
from tests.router.builders import make_config


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
