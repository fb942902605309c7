from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tidegate import doctor, keys
from tidegate.doctor import Gpu, Machine
from tidegate.effective import Overrides
from tidegate.finding import Finding, Level
from tidegate.home import Home

MACHINE = Machine(cpus=8, memory_gib=64.0, shm_gib=8.0, open_files=65536, gpus=())


def findings(home: Home, path: Path, machine: Machine = MACHINE) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.examine(home, path, Overrides(), machine)}


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_fit_machine_and_configuration_have_nothing_to_complain_of(home: Home, config_file: Path) -> None:
    keys.ensure_quickstart_key(home)
    bad = [finding for finding in findings(home, config_file).values() if finding.level is Level.ERROR]
    assert [finding for finding in bad if finding.check not in ("vllm", "gpus")] == []


def test_a_port_in_use_is_named_with_its_holder_and_the_option(home: Home, config_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        edit(config_file, "port: 28701", f"port: {taken.getsockname()[1]}")
        found = findings(home, config_file)["ports"]
    assert found.level is Level.ERROR
    assert "admin port" in found.text and "in use by process" in found.text
    assert "--admin-port" in found.next_step


def test_a_missing_model_directory_is_an_error_and_a_model_id_is_not(home: Home, config_file: Path) -> None:
    assert findings(home, edit(config_file, "source: weights", "source: ./missing"))["model m"].level is Level.ERROR
    assert "./missing" in config_file.read_text()
    assert "does not exist" in findings(home, config_file)["model m"].text
    assert findings(home, edit(config_file, "./missing", "Qwen/Qwen3-4B"))["model m"].level is Level.OK


def test_a_misspelt_key_is_shown_with_the_nearest_one(home: Home, config_file: Path) -> None:
    found = findings(home, edit(config_file, "zones:", "zonse:"))["configuration"]
    assert found.level is Level.ERROR
    assert "did you mean `zones`?" in found.text


def test_a_missing_key_file_says_how_to_make_it_but_the_quickstart_key_is_made_by_up(home: Home, config_file: Path) -> None:
    assert findings(home, config_file)["configuration"].level is Level.OK
    found = findings(home, edit(config_file, "quickstart", "clinic"))["configuration"]
    assert found.level is Level.ERROR
    assert "tidegate keys create clinic" in found.text


def test_too_little_memory_says_how_much_is_missing(home: Home, config_file: Path) -> None:
    found = findings(home, config_file, replace(MACHINE, memory_gib=1.5))["memory"]
    assert found.level is Level.ERROR
    assert "2.5 GiB are missing" in found.text
    assert "memory_gib" in found.next_step


def test_too_few_gpus(home: Home, config_file: Path) -> None:
    edit(config_file, "gpus: 0", "gpus: 2")
    found = findings(home, config_file, replace(MACHINE, gpus=(Gpu("H100", 80.0),)))["gpus"]
    assert found.level is Level.ERROR
    assert "2 GPUs" in found.text and "H100 (80 GiB)" in found.text


@pytest.mark.parametrize(
    ("machine", "check"),
    [
        (replace(MACHINE, cpus=1), "cpus"),
        (replace(MACHINE, shm_gib=0.06), "shared memory"),
        (replace(MACHINE, open_files=1024), "open files"),
    ],
)
def test_what_only_makes_it_worse_is_a_warning_with_a_next_step(
    home: Home, config_file: Path, machine: Machine, check: str
) -> None:
    found = findings(home, config_file, machine)[check]
    assert found.level is Level.WARNING
    assert found.next_step


def test_python_versions() -> None:
    assert doctor.check_python((3, 10)).level is Level.ERROR
    assert doctor.check_python((3, 11), "'--enable-optimizations' '--with-lto'").level is Level.OK
    assert doctor.check_python((3, 11), "").level is Level.OK, "nobody says how it was built"


def test_a_python_without_profile_guided_optimisation_is_worth_a_warning() -> None:
    found = doctor.check_python((3, 13), "'--prefix=/home/me/.pyenv/versions/3.13.1' '--enable-shared'")
    assert found.level is Level.WARNING and "profile-guided" in found.text and found.next_step


def test_only_the_engines_of_this_machines_zone_count(home: Home, config_file: Path) -> None:
    document = yaml.safe_load(config_file.read_text())
    args = document["applications"][0]["args"]
    args["zones"]["us"] = {}
    args["models"][0]["replicas"].append({"zone": "us", "count": 100, "gpus": 8})
    config_file.write_text(yaml.safe_dump(document))
    both = {f.check: f for f in doctor.examine(home, config_file, Overrides(), MACHINE)}
    here = {f.check: f for f in doctor.examine(home, config_file, Overrides(), MACHINE, zone="local")}
    assert (both["memory"].level, here["memory"].level) == (Level.ERROR, Level.OK)
    assert here["zone"].level is Level.WARNING and "engines of us wait" in here["zone"].text
    elsewhere = {f.check: f for f in doctor.examine(home, config_file, Overrides(), MACHINE, zone="mars")}
    assert elsewhere["zone"].level is Level.ERROR


def test_a_zone_that_the_configuration_does_not_have_is_an_error_without_engines_too(home: Home, config_file: Path) -> None:
    document = yaml.safe_load(config_file.read_text())
    args = document["applications"][0]["args"]
    server = {"id": "s", "kind": "server", "url": "http://127.0.0.1:9", "zone": "local", "vouched": True, "models": {"m": "m"}}
    args["models"], args["targets"] = [], [server]
    config_file.write_text(yaml.safe_dump(document))
    found = {f.check: f for f in doctor.examine(home, config_file, Overrides(), MACHINE, zone="mars")}
    assert found["zone"].level is Level.ERROR and "no zone `mars`" in found["zone"].text


def test_a_ray_started_by_hand_has_a_token_that_nobody_else_reads(tmp_path: Path) -> None:
    shell = {"HOME": str(tmp_path)}
    assert "RAY_AUTH_MODE" in doctor.check_ray_token(shell).text
    assert "RAY_AUTH_MODE" in doctor.check_ray_token(shell | {"RAY_AUTH_MODE": "disabled"}).text
    shell["RAY_AUTH_MODE"] = "token"
    assert "--generate" in doctor.check_ray_token(shell).next_step
    assert doctor.check_ray_token(shell | {"RAY_AUTH_TOKEN": "1234"}).level is Level.OK
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("1234")
    file.chmod(0o644)
    finding = doctor.check_ray_token(shell)
    assert finding.level is Level.WARNING and finding.next_step == f"chmod 600 {file}"
    file.chmod(0o600)
    assert doctor.check_ray_token(shell).level is Level.OK
    other = file.rename(tmp_path / "elsewhere")
    assert doctor.check_ray_token(shell | {"RAY_AUTH_TOKEN_PATH": str(other)}).level is Level.OK


@pytest.mark.parametrize(
    ("args", "gpus", "level", "said"),
    [
        (["--host", "0.0.0.0"], 0, Level.ERROR, "cannot be given (`--host` is set by tidegate)"),
        (["--tensor-parallel-size", 4], 2, Level.ERROR, "an engine has 2 GPUs, and the parallel sizes in `args` make 4"),
        (["-tp=2", "--pipeline_parallel_size=2"], 2, Level.ERROR, "make 4"),
        ([], 4, Level.WARNING, "an engine has 4 GPUs, and the parallel sizes in `args` make 1"),
        (["--tensor-parallel-size", 2], 2, Level.OK, None),
        (["--tensor-parallel-size", "two"], 1, Level.OK, None),
        ([], 0.5, Level.OK, None),
    ],
)
def test_arguments_of_an_engine_that_cannot_work_are_told_before_it_starts(home, config_file, args, gpus, level, said) -> None:
    document = yaml.safe_load(config_file.read_text())
    model = document["applications"][0]["args"]["models"][0]
    model["args"], model["replicas"][0]["gpus"] = args, gpus
    config_file.write_text(yaml.safe_dump(document))
    every = doctor.examine(home, config_file, Overrides(), MACHINE)
    found = [finding for finding in every if finding.check == "model m" and finding.level is not Level.OK]
    assert [finding.level for finding in found] == ([] if said is None else [level])
    assert all(said in finding.text and finding.next_step for finding in found)


def test_an_admin_listener_that_others_reach_is_told(home: Home, config_file: Path) -> None:
    assert findings(home, config_file)["ports"].level is Level.OK
    found = findings(home, edit(config_file, "host: 127.0.0.1", "host: 0.0.0.0"))["ports"]
    assert found.level is Level.WARNING and "every receipt without a key" in found.text and found.next_step
