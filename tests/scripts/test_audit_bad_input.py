"""Every command that reads the audit log, on logs that are damaged and with keys that are wrong: a message, never a traceback."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.tiles import pack_entries, unpack_entries
from tests.scripts.test_audit_cli import copy, logs, run, write_policy

__all__ = ["copy", "logs"]


def reading(tmp_path) -> dict[str, tuple[object, ...]]:
    policy = write_policy(tmp_path / "policy.yaml")
    return {
        "search": ("audit", "search"),
        "replay": ("audit", "replay"),
        "export": ("audit", "export", "--profile", "dora", "--out", tmp_path / "out"),
        "prove": ("audit", "prove", "req-17"),
        "whatif": ("whatif", "--policy", policy),
        "cost": ("report", "cost"),
    }


@pytest.mark.parametrize("command", ["search", "replay", "export", "prove", "whatif", "cost"])
@pytest.mark.parametrize("damage", ["entries cut off", "entries changed", "no log"])
def test_a_damaged_log_is_said_so_by_every_command_that_reads_it(copy, tmp_path, command, damage):
    bundle = copy / "router-0" / "tile" / "entries" / "000"
    if damage == "no log":
        shutil.rmtree(copy / "router-0")
        shutil.rmtree(copy / "router-1")
    elif damage == "entries cut off":
        bundle.write_bytes(bundle.read_bytes()[:-7])
    else:
        bundle.write_bytes(b"\xff" * bundle.stat().st_size)
    code, text = run(*reading(tmp_path)[command], "--dir", copy)
    assert code in (1, 2) and "Traceback" not in text and text.strip()
    assert ("there is no audit log here" in text) if damage == "no log" else ("audit verify" in text)


@pytest.mark.parametrize("command", ["search", "export", "whatif", "cost"])
@pytest.mark.parametrize("data", [b"\xa2\xff\xfe", b"\xdc\xff\xff", b"\x91\x07", b"\x80", bytes([0xDC, 0, 22, *[1] * 22])])
def test_records_whose_data_are_damaged_are_said_so_although_their_envelopes_are_whole(copy, tmp_path, command, data):
    bundle = copy / "router-0" / "tile" / "entries" / "000"
    broken = []
    for record in map(records.decode, unpack_entries(bundle.read_bytes())):
        event = records.REFUSE if data == b"\x80" else record.e
        broken.append(records.encode(record.n, record.t, record.m, event, record.id, msgspec.Raw(data)))
    bundle.write_bytes(pack_entries(broken))
    code, text = run(*reading(tmp_path)[command], "--dir", copy)
    assert "Traceback" not in text and text.strip()
    if code == 0:
        assert command in ("search", "whatif"), "the others look at such data"
    else:
        assert code in (1, 2) and ("audit verify" in text or (command == "whatif" and data == b"\x80"))


@pytest.mark.parametrize("command", ["replay", "whatif"])
def test_what_records_refer_to_is_not_believed_once_it_was_changed(copy, tmp_path, command):
    for blob in copy.glob("*/blobs/*"):
        blob.write_bytes(blob.read_bytes()[:-3])
    code, text = run(*reading(tmp_path)[command], "--dir", copy)
    assert "Traceback" not in text and "0 of" in text and (command == "whatif" or (code == 1 and "was changed" in text))


def test_a_bundle_that_cannot_be_read_is_said_so(copy, tmp_path):
    bundle = copy / "router-0" / "tile" / "entries" / "000"
    bundle.unlink()
    bundle.mkdir()
    code, text = run("audit", "search", "--dir", copy)
    assert code == 1 and "cannot be read" in text and "Traceback" not in text


def test_a_verifier_key_of_somebody_else_is_told_from_no_key(copy, tmp_path):
    key = tmp_path / "key"
    key.write_text(Signer(b"x" * 32).verifier.line + "\n")
    code, text = run("audit", "verify", "--dir", copy, "--key", key)
    assert code == 1 and "not signed by a key that is trusted here" in text


def test_verify_names_what_is_damaged(copy, tmp_path):
    key = tmp_path / "key"
    shutil.copy(copy / "router-0" / "key.vkey", key)
    bundle = copy / "router-0" / "tile" / "entries" / "000"
    bundle.write_bytes(bundle.read_bytes()[:-7])
    code, text = run("audit", "verify", "--dir", copy, "--key", key)
    assert code == 1 and "FAIL  router-0" in text and "tile/entries/000" in text and "ok    router-1" in text


UNREADABLE = {
    "zones: [": "not valid YAML",
    "zones: {eu: {}}\nzones: {us: {}}\n": "`zones` is given twice",
    "- 1\n": "expected a mapping",
    "zones: {eu: {}}\nmodles: []\n": "did you mean `models`",
}


@pytest.mark.parametrize("text", UNREADABLE)
@pytest.mark.parametrize("command", ["router", "doctor", "up", "keys create x --stored", "policy diff"])
def test_a_policy_that_cannot_be_read_is_said_so_by_every_command_that_takes_one(home, tmp_path, command, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    given = ("--config", path) if command != "policy diff" else (path, "--config", path)
    code, said = run(*command.split(), *given)
    assert code != 0 and "Traceback" not in said
    assert UNREADABLE[text] in " ".join(said.split())
