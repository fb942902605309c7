from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tidegate.effective import Overrides, read_effective, write_effective
from tidegate.home import Home

from router.compiled import compile_policy
from router.config import ConfigError, load_file

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [ROOT / "serve_config.yaml", *sorted((ROOT / "deployments" / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_compile(path: Path, tmp_path: Path) -> None:
    config = load_file(path)
    for number, key in enumerate(config.keys):
        digest = tmp_path / str(key.sha256_file)
        digest.parent.mkdir(parents=True, exist_ok=True)
        digest.write_text(f"{number:064x}\n")
    policy = compile_policy(config, tmp_path)
    assert len(policy.keys) == len(config.keys) > 0
    document = yaml.safe_load(path.read_text())
    assert document["proxy_location"] == "Disabled"
    assert document["applications"][0]["route_prefix"] is None
    assert document["applications"][0]["import_path"] == "deployments.app:build"


def test_there_are_two_examples_besides_the_default() -> None:
    assert len(SHIPPED) == 3


def test_without_overrides_the_file_itself_is_served(home: Home, config_file: Path) -> None:
    assert write_effective(home, read_effective(config_file, Overrides())) == config_file
    assert not home.effective_config.exists()


def test_overrides_change_what_they_name_and_nothing_else(home: Home, config_file: Path) -> None:
    effective = read_effective(config_file, Overrides("org/model", 9100, 9101, 1.0))
    assert not home.effective_config.exists(), "`doctor` reads too, and must change nothing"
    assert write_effective(home, effective) == home.effective_config
    before, after = load_file(config_file), load_file(home.effective_config)
    assert after == effective.config
    assert (after.models[0].source, after.listen.port, after.admin.port) == ("org/model", 9100, 9101)
    assert after.admin.host == "127.0.0.1"
    assert after.models[0].replicas[0].gpus == 1.0
    same = {"listen", "admin", "models"}
    assert after.model_dump(exclude=same) == before.model_dump(exclude=same)
    assert after.models[0].args == before.models[0].args


def test_a_model_directory_becomes_absolute(home: Home, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.root)
    effective = read_effective(config_file, Overrides(model="weights"))
    assert effective.config.models[0].source == str(home.root / "weights")


def test_a_bare_mapping_is_wrapped_into_a_serve_config(home: Home, config_file: Path) -> None:
    bare = home.root / "bare.yaml"
    bare.write_text(yaml.safe_dump(yaml.safe_load(config_file.read_text())["applications"][0]["args"]))
    effective = read_effective(bare, Overrides())
    path = write_effective(home, effective)
    assert effective.config == load_file(bare) == load_file(path)
    assert yaml.safe_load(path.read_text())["proxy_location"] == "Disabled"


def test_errors_name_the_file_or_the_options(home: Home, config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_effective(home.root / "missing.yaml", Overrides())
    with pytest.raises(ConfigError, match="with the options given"):
        read_effective(config_file, Overrides(port=70000))
