"""`tidegate plan --audit`: requests that a router really served are the trace, with their labels, lengths and what was cached."""

from __future__ import annotations

import asyncio
import json

from tidegate.cli import app
from tidegate.traffic import external_zones, read_log
from typer.testing import CliRunner

from router.ledger.reader import LogReader
from router.placement.profile import LLAMA_8B_H100
from tests.router.builders import digest
from tests.router.test_audited_requests import KEY, SPILL_KEY, audited

KEYS = [
    {"id": "inside", "sha256": digest(KEY), "priority": "high"},
    {"id": "spill", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True, "tenant": "t"},
]


async def test_the_log_of_a_router_is_a_trace_with_classes_labels_and_what_may_leave(tmp_path):
    async with audited(tmp_path, keys=KEYS) as running:
        answers = await asyncio.gather(*(running.chat(KEY if i % 3 else SPILL_KEY) for i in range(60)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await running.chat(KEY, model="nothing")).status_code == 404
    logs = [LogReader(tmp_path / "log")]
    recorded = read_log(logs)
    assert len(recorded) == 60 and external_zones(logs) == {"cloud"}
    assert {(request.key, request.priority, request.label.split("/")[0], request.spill) for request in recorded} == {
        ("inside", "high", "eu", False),
        ("spill", "normal", "cloud+eu", True),
    }
    assert {(request.prompt, request.answer, request.held) for request in recorded} == {(7, 2, 0)}
    assert read_log(logs, since=recorded[-1].at + 3600) == []

    out = tmp_path / "plan.json"
    arguments = ["plan", "--audit", str(tmp_path), "--profile", f"m={LLAMA_8B_H100.name}", "--json", str(out)]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    # An engine for each answers this little; the trace is tried with two classes, of which one may leave.
    assert document["answer"]["enough"] and document["answer"]["left_the_cluster"] == dict.fromkeys(document["plan"]["labels"], 0)
    assert sorted(wanted["spill"] for wanted in document["plan"]["classes"]) == [False, True]
    assert document["plan"]["zones"] == {"cloud": {"external": True}, "eu": {"external": False}}
    missing = await asyncio.to_thread(CliRunner().invoke, app, ["plan", "--audit", str(tmp_path)])
    assert missing.exit_code == 1 and "--profile m=" in missing.output
