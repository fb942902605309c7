"""What `tidegate audit export` says of requests that were tried in more places than one."""

from __future__ import annotations

import csv
import json

import msgspec
import pytest
import yaml
from tidegate.cli import app
from typer.testing import CliRunner

from router.config import ConfigError, parse_config, parse_recorded
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.policies import policy_text, read_policy
from router.ledger.reader import LogReader
from router.ledger.search import requests
from router.ledger.shapes import Attempt
from router.ledger.store import LogStore

RAW = msgspec.Raw(b"\x90")
START = 1795427000.0


def decision(target: str, zone: str, kind: str) -> records.DecideData:
    return records.DecideData(
        "epoch", "grant", "members", START, (RAW,), (RAW,), RAW, "cloud+eu/cloud+eu/", {}, target, target, zone, kind, "m"
    )


def attempt(target: str, zone: str, ending: str) -> Attempt:
    return Attempt(target, target, zone, "m", "predicted 10 ms", START, ending=ending)


def end(*attempts: Attempt) -> records.EndData:
    return records.EndData(
        "epoch", "web", "web", "/v1/chat/completions", "m", "cloud+eu/cloud+eu/", {}, "", 0.0, START, START + 1, 200, "", 9, 2,
        -1, -1, list(attempts),
    )  # fmt: skip


def test_a_server_outside_that_an_earlier_version_asked_is_reported_and_its_policy_read(tmp_path):
    """Version 0.1.0 took a `kind: server` in an external zone; a router does not start with one any more, but its log is read."""
    server = {"id": "far", "kind": "server", "url": "http://127.0.0.1:9", "zone": "cloud", "vouched": True, "models": {"m": "m"}}
    args = {"zones": {"eu": {}, "cloud": {"external": True}}, "targets": [server], "listen": {"port": 8001}}
    with pytest.raises(ConfigError, match="the admin listener"):
        parse_config(args)
    with pytest.raises(ConfigError, match="is external, and a server is inside"):
        parse_config({**args, "listen": {"port": 8000}})
    text = policy_text(parse_recorded(args, "then"))
    assert read_policy(text, "epoch")[1].epoch == "epoch"
    store = LogStore(tmp_path / "log", Signer(b"s" * 32))
    blob = store.put_blob(text)
    written = [
        (records.POLICY, "epoch", {"epoch": "epoch", "blob": blob}),
        (records.DECIDE, "gone", decision("far", "cloud", "server")),
        (records.END, "gone", end(attempt("far", "cloud", "complete"))),
    ]
    store.append([records.encode(n, START + n, float(n), *record) for n, record in enumerate(written)])
    store.close()
    (handled,) = requests([LogReader(tmp_path / "log")])
    assert handled.external and handled.outside == ("far (cloud)",) and not handled.intents
    now = {**args, "targets": [{**server, "zone": "eu"}], "listen": {"port": 8000}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(now))
    result = CliRunner().invoke(app, ["whatif", "--policy", str(tmp_path / "new.yaml"), "--dir", str(tmp_path / "log")])
    assert "could not be decided again" in result.output and "pruned" not in result.output, "these records have no loads"


def test_a_report_names_every_place_a_request_was_sent_to(tmp_path):
    intent = records.IntentData(
        "epoch", "web", "web", "cloud+eu/cloud+eu/", "provider", "p", "cloud", "contract", "m", "saturated", 9, 0.0
    )
    written = [
        (records.DECIDE, "back", decision("provider", "cloud", "cloud")),
        (records.INTENT, "back", intent),
        (records.DECIDE, "back", decision("a", "eu", "server")),
        (records.END, "back", end(attempt("provider", "cloud", "failed"), attempt("a", "eu", "complete"))),
        (records.DECIDE, "moved", decision("b", "us", "server")),
        (records.END, "moved", end(attempt("b", "us", "failed"), attempt("a", "eu", "complete"))),
        (records.DECIDE, "cut-off", decision("b", "us", "server")),
    ]
    store = LogStore(tmp_path / "log", Signer(b"s" * 32))
    store.append(
        [records.encode(n, START + n, float(n), event, subject, data) for n, (event, subject, data) in enumerate(written)]
    )
    store.close()

    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["audit", "export", "--profile", "gdpr", "--dir", str(tmp_path / "log"), "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    rows = {row["id"]: row for row in csv.DictReader((out / "records.csv").open(encoding="utf-8"))}
    assert (rows["back"]["zone"], rows["back"]["zones"], rows["back"]["outside"]) == ("eu", "cloud+eu", "provider (cloud)")
    assert (rows["moved"]["zones"], rows["moved"]["external"]) == ("us+eu", "False")
    assert rows["cut-off"]["zones"] == "us", "it may have been sent there"
    assert next(row for row in json.loads((out / "records.json").read_bytes()) if row["id"] == "back")["zones"] == ["cloud", "eu"]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| provider (cloud) | 1 | 11 |" in report and "a (eu)" not in report, "the target that answered at last was inside"
    assert "| us | 2 | 11 |" in report and "| eu | 2 | 22 |" in report and "| cloud | 1 | 11 |" in report
    assert "Period: the first record to 2" in report and "## Refused and failed\n\nNone.\n" in report
