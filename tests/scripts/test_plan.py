"""`tidegate plan`: which fleet keeps every class's limits and what leaves, from traces and from the log; honest errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tidegate.cli import app
from tidegate.plan import pose, search, simulate
from tidegate.planfile import PlanError, make_plan, read_plan
from tidegate.traffic import Recorded, Traffic, from_log, plan_from_log, share_out
from typer.testing import CliRunner

from cluster.simulation.trace import make_tools_trace
from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100

ROWS = make_tools_trace(600)
ONE = {
    "zones": {"here": {}, "cloud": {"external": True}},
    "labels": {"all": ["here"], "any": ["here", "cloud"]},
    "models": [{"id": "m", "profile": LLAMA_8B_H100.name, "zones": ["here"], "least": 1, "most": 16}],
    "classes": [{"name": "c", "model": "m", "label": "all", "tpot_ms": 50}],
}
TWO = {
    "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
    "labels": {"patient": ["eu"], "office": ["eu", "us", "cloud"]},
    "models": [
        {"id": "small", "profile": LLAMA_8B_H100.name, "zones": ["eu", "us"], "price": 1},
        {"id": "large", "profile": QWEN_72B_4XH100.name, "zones": ["eu"], "price": 4},
    ],
    "classes": [
        {"name": "clinic", "model": "large", "label": "patient", "share": 0.2, "priority": "high", "ttft_ms": 6000},
        {"name": "ward", "model": "small", "label": "patient", "share": 0.2},
        {"name": "office", "model": "small", "label": "office", "goal": 0.9},
    ],
}


def question(document, **changes):
    return pose(make_plan({**document, **changes}), rate=14.0)


def traffic(asked) -> Traffic:
    return share_out(ROWS, asked.plan)


def test_requests_that_no_engine_of_their_class_holds_are_left_out_and_counted() -> None:
    asked = question(ONE)
    rows = [(0.0, LLAMA_8B_H100.kv_tokens, 1, ()), *ROWS]
    whole = Traffic(rows, [0] * len(rows))
    fitting = whole.that_fits([LLAMA_8B_H100.kv_tokens])
    assert fitting.rows == ROWS and fitting.notes == ["left out: 1 of 601 requests, longer than an engine can hold"]
    assert simulate(asked, fitting, [3]).enough and not simulate(asked, whole, [3]).enough, "one would stand before all others"
    assert fitting.that_fits([LLAMA_8B_H100.kv_tokens]) is fitting
    with pytest.raises(PlanError, match="every request is longer"):
        whole.that_fits([10])


def test_the_fleet_that_is_enough_comes_last_and_can_spare_no_replica():
    asked = question(ONE)
    requests = traffic(asked)
    final = list(search(asked, requests))[-1]
    assert final.enough and final.replicas[0] > 1
    assert not simulate(asked, requests, [final.replicas[0] - 1]).enough


def test_classes_labels_and_models_are_planned_together_and_nothing_leaves_that_may_not():
    asked = question(TWO)
    requests = traffic(asked)
    final = list(search(asked, requests))[-1]
    assert final.enough and final.left["patient"] == 0 == final.left["office"]
    for place in range(3):
        fewer = list(final.replicas)
        if fewer[place]:
            fewer[place] -= 1
            assert not simulate(asked, requests, fewer).enough, (final.replicas, place)
    clinic, ward, office = final.classes
    assert set(clinic.places) == {"eu"} == set(ward.places)
    assert set(office.places) <= {"eu", "us"}
    assert sum(len([c for c in requests.classes if c == i]) for i in range(3)) == 600


def test_who_may_spill_leaves_when_there_is_no_room_and_nobody_else():
    classes = [{**c, "spill": True} for c in TWO["classes"]]
    asked = question(TWO, classes=classes)
    answer = simulate(asked, traffic(asked), [1, 0, 1])
    assert answer.left["office"] > 0 and answer.left["patient"] == 0
    assert answer.classes[2].places["cloud"] > 0


def test_a_cloud_makes_fewer_replicas_enough():
    kept = question(ONE)
    spilling = question(ONE, classes=[{**ONE["classes"][0], "label": "any", "spill": True}])
    assert not simulate(kept, traffic(kept), [2]).enough
    answer = simulate(spilling, traffic(spilling), [2])
    assert answer.left["any"] > 0 and answer.classes[0].outcome.met > 0.9


def test_a_bound_on_what_leaves_asks_for_more_replicas():
    spilling = {**ONE["classes"][0], "label": "any", "spill": True}
    loose, tight = (question(ONE, classes=[{**spilling, "most_spilled": share}]) for share in (1.0, 0.01))
    final = [list(search(asked, traffic(asked)))[-1] for asked in (loose, tight)]
    assert final[1].classes[0].outcome.spilled <= 0.01 < final[0].classes[0].outcome.spilled
    assert final[1].replicas > final[0].replicas


def test_a_fleet_without_engines_answers_nothing_and_leaks_nothing():
    asked = question(ONE, models=[{**ONE["models"][0], "least": 0}])
    answer = simulate(asked, traffic(asked), [0])
    assert not answer.enough and answer.classes[0].outcome.refused == 1.0 and answer.left == {"all": 0, "any": 0}


def test_not_enough_is_said_with_the_class_that_misses():
    asked = pose(make_plan({**ONE, "models": [{**ONE["models"][0], "most": 2}]}), rate=60.0)
    with pytest.raises(PlanError, match=r"2 x m.*not enough for c"):
        list(search(asked, traffic(asked)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"zones": {}}, "zones"),
        ({"labels": {"all": ["mars"]}}, "unknown zone `mars`"),
        ({"models": [{**ONE["models"][0], "zones": ["cloud"]}]}, "external"),
        ({"models": [{**ONE["models"][0], "least": 9, "most": 3}]}, "`least` is above `most`"),
        ({"models": ONE["models"] * 2}, "twice"),
        ({"classes": ONE["classes"] * 2}, "twice"),
        ({"classes": [{**ONE["classes"][0], "model": "n"}]}, "unknown model `n`"),
        ({"classes": [{**ONE["classes"][0], "label": "al"}]}, "did you mean|unknown label `al`"),
        ({"classes": [{**ONE["classes"][0], "colour": 1}]}, "unknown key"),
        ({"classes": [{**ONE["classes"][0], "share": 0.7}, {**ONE["classes"][0], "name": "d", "share": 0.7}]}, "more than 1"),
        ({"labels": {"all": ["cloud"]}}, "no number of replicas"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_name(change, word):
    with pytest.raises(PlanError, match=word):
        make_plan({**ONE, **change})


@pytest.mark.parametrize("text", ["[1, 2]", "{", "zones: 3", "zones: 2026-02-30", "zones: {}\nzones: {}"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError):
        read_plan(path)
    with pytest.raises(PlanError):
        read_plan(tmp_path / "nowhere.yaml")


def test_shares_that_leave_something_over_are_refused():
    plan = make_plan({**ONE, "classes": [{**ONE["classes"][0], "share": 0.5}]})
    with pytest.raises(PlanError, match=r"add up to 0\.5"):
        share_out(ROWS, plan)


def test_conversations_stay_together_when_they_are_shared_out():
    plan = make_plan({**TWO})
    requests = share_out(ROWS, plan)
    for request in requests.requests():
        assert all(requests.classes[child.index] == requests.classes[request.index] for child in request.children)
    part = requests.classes.count(2) / len(ROWS)
    assert part == pytest.approx(0.6, abs=0.08)


def test_the_command_prints_writes_and_draws_its_answer(tmp_path):
    out, picture, file = tmp_path / "plan.json", tmp_path / "plan.png", tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(TWO))
    arguments = ["plan", "tools", "--plan", str(file), "--requests", "200", "--rate", "6", "--replicas", "3"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(out), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    told = result.output.replace("\n", " ")
    assert "3 x small in eu + 3 x small in us + 3 x large in eu" in told
    assert "Label patient: nothing leaves the cluster" in told
    answer = json.loads(out.read_text())["answer"]
    assert [pool["replicas"] for pool in answer["pools"]] == [3, 3, 3] and answer["left_the_cluster"] == {
        "patient": 0,
        "office": 0,
    }
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere.jsonl"], "no trace"),
        (["tools", "--profile", "x"], "no engine profile"),
        (["tools", "--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["tools", "--plot", "x.gif"], ".png"),
        (["tools", "--audit", "x"], "not both"),
        ([], "name one of"),
        (["--calibrate", "http://127.0.0.1:1"], "does not answer"),
        (["--calibrate", "http://127.0.0.1:1", "--api-key-env", "TIDEGATE_NO_SUCH"], "TIDEGATE_NO_SUCH"),
    ],
)
def test_wrong_questions_get_a_clear_error(home, arguments, word):
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 1 and word in result.output


# -- the audit log as a trace


def recorded(count: int = 120, **changes) -> list[Recorded]:
    usual = {
        "key": "k",
        "tenant": "t",
        "priority": "normal",
        "model": "m",
        "label": "eu+us/eu+us/",
        "prompt": 3000,
        "answer": 100,
    }
    return [Recorded(**{"at": 1e9 + i, "held": 2048 if i % 4 else 0, **usual, **changes}) for i in range(count)]


def test_a_recorded_request_reuses_as_much_as_was_cached():
    requests = recorded()
    plan = make_plan(plan_from_log(requests, set(), {"m": LLAMA_8B_H100.name}, {}))
    found = from_log(requests, plan)
    assert found.rows[0][0] == 0.0 and found.span_s == pytest.approx(119)
    seen: set[int] = set()
    for (_, prompt, answer, blocks), request in zip(found.rows, requests, strict=True):
        reused = sum(block in seen for block in blocks)
        assert reused == request.held // 512 and (prompt, answer) == (3000, 100)
        seen |= set(blocks)


def test_what_was_not_counted_gets_the_usual_length_and_is_said():
    requests = recorded(60) + recorded(60, answer=-1)
    plan = make_plan(plan_from_log(requests, set(), {"m": LLAMA_8B_H100.name}, {}))
    found = from_log(requests, plan)
    assert {row[2] for row in found.rows} == {100} and any("60 answers" in note for note in found.notes)


def test_a_plan_made_from_the_log_keeps_labels_apart_and_knows_what_is_outside():
    requests = (
        recorded(60) + recorded(60, label="eu/eu/baa", priority="high") + recorded(5, label="eu+cloud/eu+cloud/", spill=True)
    )
    plan = make_plan(plan_from_log(requests, {"cloud"}, {"m": LLAMA_8B_H100.name}, {"ttft_ms": 900.0}))
    assert plan.zones["cloud"].external and not plan.zones["eu"].external
    zones = {tuple(plan.labels[wanted.label]): wanted for wanted in plan.classes}
    assert set(zones) == {("eu", "us"), ("eu",), ("eu", "cloud")}
    assert zones[("eu", "cloud")].spill and not zones[("eu",)].spill and zones[("eu",)].priority == "high"
    assert all(wanted.ttft_ms == 900 for wanted in plan.classes)
    with pytest.raises(PlanError, match="--profile m="):
        plan_from_log(requests, set(), {}, {})


def test_requests_of_no_class_and_logs_too_short_are_refused():
    plan = make_plan({**ONE, "classes": [{**ONE["classes"][0], "match": {"keys": ["other"]}}]})
    with pytest.raises(PlanError, match="120 of 120 requests belong to no class"):
        from_log(recorded(), plan)
    with pytest.raises(PlanError, match="at least 50"):
        from_log(recorded(49), make_plan(ONE))


def test_the_command_says_when_there_is_no_log(home, tmp_path: Path):
    result = CliRunner().invoke(app, ["plan", "--audit", str(tmp_path)])
    assert result.exit_code != 0 and "no audit log" in result.output
