"""`tidegate eval report` from an audit log: sides, ratings, shadows, and intervals that do not lie about small numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tidegate.cli import app
from tidegate.curves import interval_between, share_interval
from tidegate.eval_experiments import REST, compare_arms, read_experiments
from typer.testing import CliRunner

from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.log import AuditLog
from router.ledger.receipts import Receipt, StepRecord
from router.ledger.store import LogStore
from router.ledger.writer import LogWriter


def receipt(
    name: str, trial: str = "", status: int = 200, seconds: float = 1.0, complexity_gain: float = 0.1, **more: object
) -> Receipt:
    return Receipt(
        request_id=name, received=1000.0, ended=1000.0 + seconds, key="k", tenant="t", endpoint="/v1/chat/completions",
        requested_model="auto", epoch="e", label="l", label_sources={}, complexity_tier="small", complexity_score=complexity_gain,
        prompt_tokens_estimate=5, prompt_tokens=10, completion_tokens=5, status=status, trial=trial, **more,
    )  # fmt: skip


def write(root: Path) -> Path:
    log = AuditLog(LogWriter(LogStore(root / "log", Signer(bytes(32))), window_s=0.01), str)
    larger = StepRecord("larger", "big", "", -1.0, 0.0, 0.0, 1, 1)
    for turn in range(40):
        log.ended(receipt(f"a{turn}", seconds=1.0 + turn / 100))
        log.ended(receipt(f"b{turn}", "try", seconds=2.0 + turn / 100, mode="cascade", steps=[larger] if turn % 2 else []))
        log.event(records.FEEDBACK, f"a{turn}", {"key": "k", "tenant": "t", "score": 0.2 + turn % 2 / 10, "weight": 1.0})
        log.event(records.FEEDBACK, f"b{turn}", {"key": "k", "tenant": "t", "score": 0.8 + turn % 2 / 10, "weight": 1.0})
        log.event(records.FEEDBACK, f"b{turn}", {"key": "k", "tenant": "t", "score": 0.0, "weight": 0.3})
    log.ended(receipt("s", "look", mode="shadow"))
    log.ended(receipt("l", mode="label"))
    log.ended(msgspec.structs.replace(receipt("n"), requested_model="m"))
    log.event(records.SHADOW, "a0", {"trial": "look", "tier": "small", "differs": False})
    compared = {
        "trial": "look",
        "differs": True,
        "agrees": True,
        "usd": 0.5,
        "main_usd": 0.25,
        "seconds": 3.0,
        "main_seconds": 1.0,
    }
    log.event(records.SHADOW, "a1", compared)
    log.close()
    return root / "log"


def test_the_sides_of_an_experiment_are_compared_with_everybody_else(tmp_path):
    shown = CliRunner().invoke(app, ["eval", "report", "--dir", str(write(tmp_path))])
    assert shown.exit_code == 0, shown.output
    assert "everybody else: 40 requests" in shown.output and "try: 40 requests" in shown.output
    assert "shadow look: looked at 2 requests, would have chosen otherwise for 1" in shown.output
    rows = [line.split() for line in shown.output.splitlines()]
    scores = [float(row[1]) for row in rows if row[:1] == ["score"]]
    assert scores == [0.25, 0.85]
    assert [float(row[1]) for row in rows if row[:1] == ["escalated"]] == [0.0, 0.5]
    assert "+0.6 [" in shown.output and "+0.25 [" in shown.output


def test_an_implicit_signal_is_no_rating_and_named_models_are_in_no_side():
    end = records.EndData(*("",) * 6, {}, "", 0.0, 1.0, 2.0, 200, "", 1, 1, 0, 0, [])
    entry = records.Record(records.VERSION, 5.0, 0.0, records.END, "x", msgspec.Raw(msgspec.msgpack.encode(end)), 0)
    arms, shadows = read_experiments([entry])
    assert not arms and not shadows and compare_arms(arms) == {}


def test_a_share_of_none_among_few_is_not_certain():
    none = share_interval([0.0] * 5)
    assert none.value == none.low == 0.0 and none.high == pytest.approx(0.434, abs=0.001)
    gap = interval_between(none, share_interval([1.0] * 5))
    assert gap.value == 1.0 and 0 < gap.low < 0.5
    with pytest.raises(ValueError, match="at least one"):
        share_interval([])
    assert REST not in compare_arms({})


def test_a_log_without_experiments_says_so(tmp_path):
    log = AuditLog(LogWriter(LogStore(tmp_path / "log", Signer(bytes(32))), window_s=0.01), str)
    log.ended(receipt("a"))
    log.close()
    shown = CliRunner().invoke(app, ["eval", "report", "--dir", str(tmp_path / "log")])
    assert shown.exit_code == 0 and "no experiment is in this log" in shown.output
    assert CliRunner().invoke(app, ["eval", "report", "--dir", str(tmp_path / "nowhere")]).exit_code == 2


def test_the_label_loop_is_told_step_by_step(tmp_path):
    log = AuditLog(LogWriter(LogStore(tmp_path / "log", Signer(bytes(32))), window_s=0.01), str)
    models = {"small_model": "s", "large_model": "l"}
    for turn in range(10):
        log.event(records.LABEL, f"a{turn}", {**models, "by": "judge" if turn % 2 else "same", "small": 0.5, "large": 1.0})
    log.event(records.LABEL, "b", {**models, "by": "", "why": "the judge did not say"})
    tried = {"at": 1.8e9, "champion": "aaaaaaaaaaaa", "labels": 9, "questions": 8, "trained": 6, "held_out": 2, "by": "root"}
    log.event(records.REFIT, "aaaaaaaaaaaa", {**tried, "outcome": "not compared", "why": "too few"})
    better = {"challenger": "bbbbbbbbbbbb", "look": 1, "difference": 0.05, "low": 0.01, "high": 0.09, "alpha": 0.01}
    log.event(records.REFIT, "bbbbbbbbbbbb", {**tried, **better, "outcome": "promoted"})
    log.event(records.WEIGHTS, "bbbbbbbbbbbb", {"epoch": "e"})
    log.close()
    shown = CliRunner().invoke(app, ["eval", "report", "--dir", str(tmp_path / "log")])
    assert shown.exit_code == 0, shown.output
    for line in (
        "labels: 10 (5 by same, 5 by judge)", "1 attempts made none: the judge did not say", "small 0.500 [0.500, 0.500]",
        "not compared: too few", "+0.0500 [+0.0100, +0.0900] (99.0%), look 1", "promoted: bbbbbbbbbbbb",
        "weights bbbbbbbbbbbb in use by a router",
    ):  # fmt: skip
        assert line in shown.output


def test_what_the_router_asks_for_itself_is_nobodys_use(tmp_path):
    where = str(write(tmp_path))
    for by, own in (("tenant", "t"), ("key", "k")):
        shown = CliRunner().invoke(app, ["report", "cost", "--by", by, "--dir", where, "--format", "json"])
        assert shown.exit_code == 0, shown.output
        counts = {line["name"]: line["requests"] for line in msgspec.json.decode(shown.stdout)}
        assert counts == {own: 81, "(shadow)": 1, "(label)": 1}
