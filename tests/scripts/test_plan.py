"""`tidegate plan`: fewer limits kept with fewer replicas, the smallest number that is enough, honest errors."""

from __future__ import annotations

import json

import pytest
from tidegate.cli import app
from tidegate.plan import PlanError, Question, find_profile, search, simulate
from typer.testing import CliRunner

from cluster.simulation.outcome import Slo
from cluster.simulation.trace import make_tools_trace
from router.placement.profile import LLAMA_8B_H100

ROWS = make_tools_trace(600)


def test_the_smallest_number_that_is_enough_comes_last():
    question = Question(LLAMA_8B_H100, Slo(), rate=14.0, most=16)
    answers = list(search(question, ROWS))
    assert answers[-1].enough and answers[-1].replicas > 1
    assert not simulate(question, ROWS, answers[-1].replicas - 1).enough


def test_a_cloud_makes_fewer_replicas_enough_and_says_what_leaves():
    question = Question(LLAMA_8B_H100, Slo(), rate=14.0, cloud=True)
    answer = simulate(question, ROWS, 2)
    assert answer.outcome.spilled > 0 and answer.outcome.met > 0.9


def test_not_enough_is_said_not_hidden():
    with pytest.raises(PlanError, match="not enough"):
        list(search(Question(LLAMA_8B_H100, Slo(), rate=60.0, most=2), ROWS))


def test_the_command_prints_and_writes_its_answer(tmp_path):
    out = tmp_path / "plan.json"
    arguments = ["plan", "tools", "--requests", "300", "--rate", "8", "--replicas", "3", "--json", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "3 replicas" in result.output.replace("\n", " ")
    assert json.loads(out.read_text())["answers"][0]["replicas"] == 3


@pytest.mark.parametrize(
    ("arguments", "word"), [(["nowhere.jsonl"], "no trace"), (["tools", "--profile", "x"], "no engine profile")]
)
def test_wrong_questions_get_a_clear_error(arguments, word):
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 1 and word in result.output


def test_a_profile_can_come_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    fields = {name: getattr(LLAMA_8B_H100, name) for name in LLAMA_8B_H100.__struct_fields__}
    path.write_text(json.dumps({**fields, "name": "mine"}))
    assert find_profile(str(path)).name == "mine"
    path.write_text("{}")
    with pytest.raises(PlanError):
        find_profile(str(path))
