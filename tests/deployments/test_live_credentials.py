"""Keys in files can be rotated while the egress runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.credentials import LiveCredentials
from router.config import ConfigError
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
