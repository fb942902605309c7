"""`tidegate audit payload` and `shred`, over payloads that a capture kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tidegate.cli import app
from typer.testing import CliRunner

from router.compiled import compile_policy
from router.config import load_file
from router.ledger import records
from router.ledger.capturing import REQUEST, RESPONSE, Payload, open_capture
from router.ledger.opening import open_audit

RUNNER = CliRunner()
SECRET = b"the patient has a condition"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@pytest.fixture
def captured(home, config_file) -> Path:
    """An installation in which one request of each of two subjects was captured."""
    home.keys.mkdir(parents=True)
    (home.keys / "quickstart.sha256").write_text("0" * 63 + "1  quickstart\n")
    data = yaml.safe_load(config_file.read_text())
    data["applications"][0]["args"]["capture"] = {"zone": next(iter(data["applications"][0]["args"]["zones"]))}
    config_file.write_text(yaml.safe_dump(data))
    config = load_file(config_file)
    log = open_audit(config, compile_policy(config, home.root), home.root)
    assert log is not None
    capture = open_capture(config, home.root, log)
    assert capture is not None
    for number, subject in enumerate(("me", "you")):
        body = SECRET + b" of " + subject.encode()
        capture._queue.put(Payload(f"req-{number}", "clinic", subject, "/x", 1.8e9, body, len(body), HEAD + b"ok", len(HEAD) + 2))
    capture.close()
    log.close()
    return config_file


def run(*arguments: object) -> tuple[int, bytes]:
    result = RUNNER.invoke(app, ["audit", *map(str, arguments)])
    return result.exit_code, result.stdout_bytes + result.stderr_bytes


def events(home, event: str) -> list[dict]:
    code, text = run("search", "--event", event)
    assert code == 0
    return [json.loads(line) for line in text.splitlines()]


def test_a_payload_is_read_by_its_request_and_that_is_recorded(home, captured):
    assert run("payload", "req-0", "--part", REQUEST) == (0, SECRET + b" of me")
    assert run("payload", "req-0") == (0, b"ok")
    assert [(item["id"], item["part"]) for item in events(home, records.READ)] == [("req-0", REQUEST), ("req-0", RESPONSE)]
    code, text = run("payload", "req-9")
    assert code == 1 and b"no captured response" in text


def test_a_shredded_subject_is_gone_and_the_others_and_the_log_are_whole(home, captured):
    code, text = run("shred", "--subject", "me", "--tenant", "clinic")
    assert code == 0 and b"1 data keys, 2 payloads" in text
    code, text = run("payload", "req-0", "--part", REQUEST)
    assert code == 1 and b"shredded" in text and SECRET not in text
    assert run("payload", "req-1", "--part", REQUEST)[0] == 0
    (tombstone,) = events(home, records.SHRED)
    assert tombstone["payloads"] == 2 and "me" not in json.dumps(tombstone["key_ids"])
    assert run("verify")[0] == 0
    code, text = run("shred", "--subject", "me", "--tenant", "clinic")
    assert code == 1 and b"nothing is kept" in text


def test_a_subject_of_another_tenant_is_another(home, captured):
    code, text = run("shred", "--subject", "me")
    assert code == 1 and b"nothing is kept" in text
    assert run("payload", "req-0")[0] == 0


def test_a_legal_hold_goes_before_shredding(home, captured):
    assert run("hold", "add", "case-7", "--reason", "court", "--since", "2027-01-01", "--until", "2028-01-01")[0] == 0
    code, text = run("shred", "--subject", "me", "--tenant", "clinic")
    assert code == 1 and b"case-7" in text
    assert run("payload", "req-0", "--part", REQUEST)[0] == 0
    assert run("hold", "release", "case-7")[0] == 0
    assert run("shred", "--subject", "me", "--tenant", "clinic")[0] == 0


def test_a_changed_payload_and_a_wrong_key_are_said_so(home, captured):
    path = next(path for path in (home.root / ".tidegate" / "capture" / "payloads").rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    codes = [run("payload", f"req-{number}", "--part", part)[0] for number in (0, 1) for part in (REQUEST, RESPONSE)]
    assert sorted(codes) == [0, 0, 0, 1]
    (home.keys / "capture.kek").write_text("0" * 64)
    code, text = run("payload", "req-0")
    assert code == 1 and b"key-encryption key is another" in text
    (home.keys / "capture.kek").unlink()
    code, text = run("payload", "req-0")
    assert code == 2 and b"capture.kek" in text and not (home.keys / "capture.kek").exists()


def test_without_a_capture_block_the_commands_say_so(home, config_file):
    home.keys.mkdir(parents=True)
    code, text = run("shred", "--subject", "me")
    assert code == 2 and b"no `capture` block" in text
