"""`tidegate options`: every option of a configuration is listed, with what the classes that validate it say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tidegate.cli import app
from tidegate.options import every_option, kind_of
from typer.testing import CliRunner

from router.config import Config, read_args
from router.config.access import Credential

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = CliRunner()
EVERY = {option.place: option for option in every_option(Config)}


def unlisted(value: Any, place: str = "") -> Iterator[str]:
    """What a configuration says that is not listed; names that are the operator's own are none."""
    if isinstance(value, list):
        for item in value:
            yield from unlisted(item, f"{place}[]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            here = f"{place}.{name}".lstrip(".")
            if here in EVERY:
                yield from unlisted(inner, here)
            elif place in EVERY and EVERY[place].kind.startswith("names"):
                yield from unlisted(inner, f"{place}.NAME")
            else:
                yield here


@pytest.mark.parametrize("path", [ROOT / "serve_config.yaml", *sorted((ROOT / "deployments" / "examples").glob("*.yaml"))])
def test_what_the_examples_say_is_listed(path):
    args = read_args(path)
    assert list(unlisted(args)) == []
    assert list(unlisted({**args, "slo": {"ttft": 1}, "tagz": 1})) == ["slo.ttft", "tagz"]


def test_an_option_is_told_with_its_kind_its_default_and_what_it_is_for():
    shown = RUN.invoke(app, ["options", "targets.tls"])
    assert shown.exit_code == 0
    assert "targets[].tls.server_name   text\n    The name the peer's certificate must carry." in shown.output
    assert "keys" not in shown.output
    assert "timeouts.first_byte_s   number   default 600.0" in RUN.invoke(app, ["options", "timeouts"]).output
    assert EVERY["targets[].kind"].lines == ["targets[].kind   server | cloud   required"]
    assert EVERY["keys[].daily_tokens"].text == "Prompt and answer tokens per UTC day.", "of a class it inherits from"
    assert EVERY["residency.tags.NAME.sensitive"].default == "default false" and EVERY["models[].replicas[].gpus"].text
    assert kind_of(Credential) == kind_of(Credential | None) == "block"


def test_a_name_that_is_none_is_told_the_nearest():
    shown = RUN.invoke(app, ["options", "keys[].residenzy"])
    assert shown.exit_code == 1 and "did you mean `keys.residency`?" in shown.stderr


def test_every_name_is_an_option_that_is_read():
    for option in EVERY.values():
        assert "value" not in option.kind.split(), option.place
    assert yaml.safe_load(EVERY["complexity.tiers"].default.removeprefix("default ")) == ["small", "large"]
