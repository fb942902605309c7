"""`tidegate audit` and `tidegate whatif` over logs that real decisions were written to."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tidegate import audit
from tidegate.cli import app
from typer.testing import CliRunner

from router.ledger.checkpoint import load_signer
from router.ledger.retention import standing_holds
from router.ledger.store import LogBusy

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _ledger.detect import build_log
from _ledger.traffic import make_config

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("audit")
    signer = load_signer(root / "signing.key")
    for number in range(2):
        build_log(root / f"router-{number}", signer, seed=number, requests=250, segment_bytes=30_000)
    return root


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture
def copy(logs, tmp_path) -> Path:
    shutil.copytree(logs, tmp_path / "audit")
    return tmp_path / "audit"


def test_verify_says_what_is_whole_and_what_was_changed(copy, tmp_path):
    key = tmp_path / "key"
    shutil.copy(copy / "router-0" / "key.vkey", key)
    code, text = run("audit", "verify", "--dir", copy, "--key", key)
    assert code == 0 and text.count("ok  ") == 2
    held = tmp_path / "held"
    held.write_bytes((copy / "router-0" / "head").read_bytes() + b"\n" + (copy / "router-1" / "head").read_bytes())
    assert run("audit", "verify", "--dir", copy, "--key", key, "--against", held)[0] == 0
    shutil.rmtree(copy / "router-1")
    code, text = run("audit", "verify", "--dir", copy, "--key", key, "--against", held)
    assert code == 1 and "the log is not here" in text
    shutil.copytree(copy / "router-0", copy / "router-7")
    code, text = run("audit", "verify", "--dir", copy, "--key", key)
    assert code == 1 and "two logs here claim this name" in text
    bundle = copy / "router-7" / "tile" / "entries" / "000"
    bundle.write_bytes(bundle.read_bytes().replace(b"req-1", b"req-2"))
    code, text = run("audit", "verify", "--dir", copy / "router-7", "--key", key)
    assert code == 1 and "FAIL  router-7" in text


@pytest.mark.parametrize("content", [None, "", "nonsense\n"])
def test_a_wrong_key_file_is_said_so(copy, tmp_path, content):
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    code, text = run("audit", "verify", "--dir", copy, "--key", key)
    assert code == 2 and str(key) in text


def test_where_there_is_no_log_the_next_step_is_named(tmp_path):
    code, text = run("audit", "verify", "--dir", tmp_path)
    assert code == 2 and "--dir says where" in text


def test_a_proof_holds_without_the_log_and_a_changed_one_does_not(copy, tmp_path):
    key, out = tmp_path / "key", tmp_path / "proof.json"
    shutil.copy(copy / "router-0" / "key.vkey", key)
    code, _ = run("audit", "prove", "req-17", "--dir", copy, "--out", out)
    assert code == 0
    code, text = run("audit", "check", out, "--key", key)
    assert code == 0 and "decide req-17" in text and "end req-17" in text
    proofs = json.loads(out.read_text())
    for change in ({"record": {**proofs[0]["record"], "id": "req-18"}}, {"entry": proofs[1]["entry"]}, {"proof": "x"}):
        out.write_text(json.dumps([{**proofs[0], **change}]))
        assert run("audit", "check", out, "--key", key)[0] == 1
    assert run("audit", "prove", "no-such-request", "--dir", copy)[0] == 1


def test_search_finds_by_id_event_field_and_time(logs):
    code, text = run("audit", "search", "--dir", logs, "--id", "req-5")
    found = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and {item["log"] for item in found} == {"router-0", "router-1"}
    assert {item["event"] for item in found} == {"decide", "end"}
    _, text = run("audit", "search", "--dir", logs, "--event", "end", "--where", "tenant=t3", "--limit", 500)
    tenants = {json.loads(line)["tenant"] for line in text.splitlines()}
    assert tenants == {"t3"}
    assert run("audit", "search", "--dir", logs, "--since", "2000-01-01", "--until", "2000-01-02")[1] == ""
    assert run("audit", "search", "--dir", logs, "--since", "yesterday")[0] == 2
    assert run("audit", "search", "--dir", logs, "--where", "tenant")[0] == 2


@pytest.mark.parametrize("profile", ["ai-act", "hipaa", "dora", "gdpr"])
def test_export_writes_a_table_and_a_report(logs, tmp_path, profile):
    code, text = run("audit", "export", "--profile", profile, "--dir", logs, "--out", tmp_path / "out")
    assert code == 0, text
    rows = (tmp_path / "out" / "records.csv").read_text().splitlines()
    data = json.loads((tmp_path / "out" / "records.json").read_text())
    assert len(rows) == len(data) + 1 == 501
    report = (tmp_path / "out" / "report.md").read_text()
    assert "verified" in report and "500 requests" in report and "provider (cloud)" in report
    assert (tmp_path / "out" / "router-0.checkpoint").is_file()


def test_an_unknown_profile_is_said_so(logs, tmp_path):
    code, text = run("audit", "export", "--profile", "sox", "--dir", logs, "--out", tmp_path)
    assert code == 2 and "ai-act, hipaa, dora, gdpr" in text


def test_replay_agrees_on_every_decision(logs):
    code, text = run("audit", "replay", "--dir", logs)
    assert code == 0 and "500 of 500 decisions came out as recorded" in text


def test_a_hold_that_would_keep_nothing_is_refused(copy, tmp_path):
    add = ("audit", "hold", "add", "case-1", "--reason", "litigation", "--dir")
    assert run(*add, tmp_path / "typo")[0] == 2 and not (tmp_path / "typo").exists()
    code, text = run(*add, copy / "router-0")
    assert code == 2 and "name that" in text and not (copy / "router-0" / "holds.json").exists()
    code, text = run(*add, copy, "--since", "2026-12-01", "--until", "2026-11-01")
    assert code == 2 and "no time between" in text and standing_holds(copy) == ()


def test_holds_are_recorded_and_kept(copy):
    assert run("audit", "hold", "add", "case-7", "--reason", "litigation", "--since", "2026-01-01", "--dir", copy)[0] == 0
    assert run("audit", "hold", "add", "case-7", "--reason", "again", "--dir", copy)[0] == 2
    assert "litigation" in run("audit", "hold", "list", "--dir", copy)[1]
    assert run("audit", "hold", "release", "case-7", "--dir", copy)[0] == 0
    assert run("audit", "hold", "release", "case-7", "--dir", copy)[0] == 2
    _, text = run("audit", "search", "--dir", copy, "--id", "case-7")
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["hold", "release"]
    assert run("audit", "verify", "--dir", copy)[0] == 0
    assert run("audit", "hold", "add", "case-8", "--reason", "its line is lost", "--dir", copy)[0] == 0
    (copy / "holds.json").unlink()
    assert "its line is lost" in run("audit", "hold", "list", "--dir", copy)[1], "it stands until its release is recorded"
    assert run("audit", "hold", "release", "case-8", "--dir", copy)[0] == 0 and standing_holds(copy) == ()
    (copy / "holds.json").write_text("{")
    code, text = run("audit", "hold", "list", "--dir", copy)
    assert code == 2 and "nothing will be removed" in text


def write_policy(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**make_config().model_dump(mode="json"), **changes}))
    return path


def test_whatif_under_the_same_policy_changes_nothing(logs, tmp_path):
    code, text = run("whatif", "--policy", write_policy(tmp_path / "new.yaml"), "--dir", logs)
    assert code == 0 and "500 decisions, 0 of them" in text


def test_whatif_finds_what_would_leave_and_what_would_be_refused(logs, tmp_path):
    keys = [key.model_dump(mode="json") for key in make_config().keys]
    wide = write_policy(tmp_path / "wide.yaml", keys=[{**key, "residency": "any", "spill": True} for key in keys])
    code, text = run("whatif", "--policy", wide, "--dir", logs)
    assert code == 1 and "would have left the cluster" in text
    assert run("whatif", "--policy", wide, "--dir", logs, "--fail-on", "model")[0] == 0
    narrow = write_policy(tmp_path / "narrow.yaml", keys=[key for key in keys if key["id"] != "plain"])
    code, text = run("whatif", "--policy", narrow, "--dir", logs, "--json")
    changes = [json.loads(line) for line in text.splitlines()]
    assert code == 1 and {change["key"] for change in changes} == {"plain"}
    assert {change["after"] for change in changes if "refused" in change["kinds"]} == {"refused: invalid_api_key"}
    inside = write_policy(tmp_path / "inside.yaml", spill={"enabled": False})
    code, text = run("whatif", "--policy", inside, "--dir", logs, "--fail-on", "leaves")
    assert code == 0 and "would have left" not in text and "-> 0.0000 USD" in text


def test_whatif_under_another_budget_spends_that_one(logs, tmp_path):
    """What a router had left of the recorded budget was a lease: of another budget it says nothing."""

    def cost_under(daily_usd: float | None) -> float:
        policy = write_policy(tmp_path / "policy.yaml", spill={"daily_budget_usd": daily_usd})
        return float(run("whatif", "--policy", policy, "--dir", logs)[1].rsplit("-> ", 1)[1].split(" USD")[0])

    unbounded = cost_under(None)
    assert cost_under(0.0) == 0.0 < cost_under(unbounded / 3) <= unbounded / 3 < unbounded == cost_under(2 * unbounded)


def test_whatif_under_other_zones_reads_labels_by_name(logs, tmp_path):
    config = make_config().model_dump(mode="json")
    config["zones"] = {"aa": {}, **config["zones"]}  # every mask is another now
    code, text = run("whatif", "--policy", write_policy(tmp_path / "new.yaml", zones=config["zones"]), "--dir", logs)
    assert code == 0 and "500 decisions, 0 of them" in text


def test_a_policy_that_does_not_parse_is_said_so(logs, tmp_path):
    (tmp_path / "bad.yaml").write_text("zones: [")
    code, text = run("whatif", "--policy", tmp_path / "bad.yaml", "--dir", logs)
    assert code == 2 and "not valid YAML" in text
    code, text = run("whatif", "--policy", write_policy(tmp_path / "new.yaml"), "--dir", logs, "--fail-on", "nonsense")
    assert code == 2 and "unknown nonsense" in text


def test_the_cost_report_adds_up_by_every_name(logs):
    from router.ledger.reader import LogReader
    from router.ledger.search import requests

    handled = list(requests([LogReader(logs / "router-0"), LogReader(logs / "router-1")]))
    outside = [item for item in handled if item.target == "provider" and item.prompt_tokens >= 0]
    expected = sum(item.prompt_tokens * 1 + item.completion_tokens * 2 for item in outside) / 1e6
    assert expected > 0
    for by in ("tenant", "key", "model", "target"):
        code, text = run("report", "cost", "--by", by, "--dir", logs, "--format", "json")
        lines = json.loads(text)
        assert code == 0 and sum(line["usd"] for line in lines) == pytest.approx(expected)
        assert sum(line["requests"] for line in lines) == 500
    assert [line["name"] for line in lines if line["usd"]] == ["provider"]
    assert run("report", "cost", "--by", "colour", "--dir", logs)[0] == 2
    assert "provider" in run("report", "cost", "--by", "target", "--dir", logs)[1]
    assert run("report", "cost", "--format", "csv", "--dir", logs)[1].startswith("name,requests,")


def test_a_hold_that_finds_no_free_log_is_refused_and_not_done(copy, monkeypatch):
    def busy(*_: object) -> None:
        raise LogBusy("all are in use")

    monkeypatch.setattr(audit, "open_slot", busy)
    code, text = run("audit", "hold", "add", "case-9", "--reason", "no log is free", "--dir", copy)
    assert code == 2 and "all are in use" in text and "Traceback" not in text
    assert "case-9" not in run("audit", "hold", "list", "--dir", copy)[1]
