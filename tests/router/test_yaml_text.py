"""What lies at a configuration's path may be anything, and a few lines of YAML may mean any amount."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from router.config import ConfigError, load_file, parse_config, parse_yaml
from router.policy_source import PolicySource, read_policy_file
from tests.router.builders import digest

CONFIG = {
    "zones": {"eu": {}},
    "targets": [{"id": "a", "kind": "server", "url": "http://127.0.0.1:1", "zone": "eu", "vouched": True, "models": {"m": "m"}}],
    "keys": [{"id": "k", "sha256": digest("k")}],
}


def laughs(levels):
    return "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (laughs(12), "too large"),
        ("b0: &b0 {k: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
         "merges too many keys"),
        ("a: &a [*a]\n", "inside of what it names"),
        ("a: &a {b: [*a]}\n", "inside of what it names"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000)), "nested too deep"),
        ("a: " + "1:" * 100_000 + "1\n", "a number as long as this"),
    ],
)  # fmt: skip
def test_a_few_lines_that_mean_very_much_are_refused_before_anybody_walks_through_them(text, why):
    with pytest.raises(yaml.YAMLError, match=why):
        parse_yaml(text)


def test_aliases_within_bounds_mean_what_they_name():
    read = parse_yaml("a: &a [1, {b: 2}]\nc: [*a, *a]\nd: *a\n")
    assert read == {"a": [1, {"b": 2}], "c": [[1, {"b": 2}], [1, {"b": 2}]], "d": [1, {"b": 2}]}


def test_of_a_configuration_no_more_is_read_than_one_can_hold(tmp_path):
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="more than 4 MiB"):
        load_file(tmp_path / "zero.yaml")


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_policy_file_may_come_from_windows(tmp_path, end, mark):
    (tmp_path / "policy.yaml").write_bytes(mark + f"spill:{end}  enabled: false{end}...{end}".encode())
    assert read_policy_file(tmp_path / "policy.yaml") == {"spill": {"enabled": False}}


def test_a_router_does_not_wait_for_what_was_put_in_the_place_of_a_file_it_watches(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("spill: {enabled: false}\n...\n")
    glass = {"file": "glass", "approvers": {"a": "0" * 64, "b": "1" * 64}}
    source = PolicySource({**CONFIG, "policy_file": "policy.yaml", "break_glass": glass}, tmp_path)
    source.load()
    for name in ("policy.yaml", "glass"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        assert source.changed()
        with pytest.raises(ConfigError, match=r"no regular file|cannot read"):
            source.load()
        (tmp_path / name).unlink()
        policy.write_text("spill: {enabled: false}\n...\n")
        assert source.changed()
        source.load()


def test_a_link_that_is_swapped_under_a_policy_file_is_seen(tmp_path):
    """As Kubernetes does it: `policy.yaml` -> `..data/policy.yaml`, and `..data` is replaced by one rename."""
    texts = {"one": "slo: {ttft_ms: 1000}\n...\n", "two": "slo: {ttft_ms: 2000}\n...\n"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(text)
        os.utime(tmp_path / name / "policy.yaml", (time.time() - 60,) * 2)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "policy.yaml").symlink_to(Path("..data") / "policy.yaml")
    source = PolicySource({**CONFIG, "policy_file": "policy.yaml"}, tmp_path)
    assert source.load().config.slo.ttft_ms == 1000
    (tmp_path / "..tmp").symlink_to("two")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert source.changed()
    assert source.load().config.slo.ttft_ms == 2000 and not source.changed()


def test_what_an_error_quotes_of_a_file_is_cut_and_no_terminal_obeys_it():
    with pytest.raises(ConfigError) as caught:
        parse_config({"\x1b]0;owned\x07modles\x9b": [], "x" * 100_000: 1, **{f"key{i}": 1 for i in range(5000)}})
    text = str(caught.value)
    assert "\\u001b]0;owned\\u0007modles\\u009b" in text and "more characters" in text and "more problems" in text
    assert all(char == "\n" or char.isprintable() for char in text) and len(text) < 10_000
