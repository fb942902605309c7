"""What the README shows is what the files hold, and its example configurations are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from router.config import parse_config

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_opens_with_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.S)
    assert first is not None
    assert [line.split()[0] for line in first[1].splitlines()] == ["./scripts/quickstart", "./scripts/test"]


@pytest.mark.parametrize("name", ["one_node_8_gpus", "three_nodes_two_zones_cloud"])
def test_the_examples_it_shows_are_the_files_and_are_valid(name):
    shown = re.search(rf"deployments/examples/{name}\.yaml</code></summary>\n\n```yaml\n(.*?)\n```", README, re.S)
    assert shown is not None
    assert shown[1] == (ROOT / "deployments" / "examples" / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
    assert parse_config(yaml.safe_load(shown[1])["applications"][0]["args"])


def test_no_placeholder_is_left_and_every_named_file_exists():
    assert "{{" not in README
    for path in re.findall(r"`((?:router|cluster|deployments|scripts|tests)/[\w./-]+\.\w+)`", README):
        assert (ROOT / path).exists(), path


def test_every_error_code_and_status_is_named():
    paragraph = re.search(r"^Errors have OpenAI's envelope.*?\n\n", README, re.S | re.M)
    assert paragraph is not None
    named = {
        (status, code)
        for codes, statuses in re.findall(r"((?:`\w+`(?:,| and) )*`\w+`) (\d{3}(?:/\d{3})*)", paragraph[0])
        for code in re.findall(r"\w+_\w+|overloaded", codes)
        for status in statuses.split("/")
    }
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "router").rglob("*.py")]
    used = {pair for source in sources for pair in re.findall(r'ApiError\(\s*(\d{3}),\s*"(\w+)"', source)}
    assert used and used - named == set()


def test_every_metric_it_names_exists():
    made = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "router").rglob("*.py"))
    for name in set(re.findall(r"`(tidegate_\w*[a-z])`", README)):
        assert f'"{name.removesuffix("_total")}"' in made, name
