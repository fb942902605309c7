"""`tidegate eval`: RouteLLM's and RouterBench's definitions, and files that are not what they should be."""

from __future__ import annotations

import json
import random

import pytest
from tidegate.cli import app
from tidegate.curves import aiq, apgr, apgr_interval, cpt, difference_interval, mean_interval, non_decreasing_hull, recovered
from tidegate.outcome_file import EvalError, read_outcomes
from typer.testing import CliRunner

RUN = CliRunner()


def rows(count=2000):
    dice = random.Random(0)
    small = [float(dice.random() < 0.6) for _ in range(count)]
    large = [float(dice.random() < 0.8) for _ in range(count)]
    return small, large


def test_chance_is_a_half_and_the_oracle_is_far_above():
    small, large = rows()
    dice = random.Random(5)
    areas = [apgr([dice.random() for _ in small], small, large) for _ in range(20)]
    assert abs(sum(areas) / 20 - 0.5) < 0.05
    oracle = [b - a for a, b in zip(small, large, strict=True)]
    assert apgr(oracle, small, large) > 1 and cpt(oracle, small, large, 0.5) < 25
    assert apgr([-x for x in oracle], small, large) < 0
    found = apgr_interval(oracle, small, large, 50)
    assert found.low < found.value < found.high


def test_a_router_without_an_opinion_does_not_profit_from_the_order_of_the_file():
    small, large = [1.0] * 500 + [0.0] * 500, [1.0] * 1000
    assert abs(apgr([0.0] * 1000, small, large) - 0.5) < 0.06
    assert recovered([0.0] * 10, [0.0] * 10, [1.0] * 10) == pytest.approx([i / 10 for i in range(11)])


def test_cpt_is_linear_between_the_quantiles():
    assert cpt([float(-i) for i in range(10)], [0.0] * 10, [1.0] * 10, 0.55) == pytest.approx(55.0)
    with pytest.raises(ValueError, match="no gap"):
        apgr([1.0], [1.0], [1.0])


def test_aiq_is_the_height_of_the_hull():
    assert aiq([(0, 0.0), (1, 1.0)]) == pytest.approx(0.5)
    assert aiq([(0, 0.0), (0.5, 1.0), (1, 0.2)]) == pytest.approx(0.75)
    assert non_decreasing_hull([(0, 0.5), (1, 0.4), (2, 0.6)]) == [(0, 0.5), (2, 0.6)]
    with pytest.raises(ValueError, match="different cost"):
        aiq([(1, 0.5)])


def test_differences_have_intervals():
    dice = random.Random(1)
    a, b = [dice.gauss(0.5, 0.1) for _ in range(400)], [dice.gauss(0.6, 0.1) for _ in range(400)]
    gap = difference_interval(a, b)
    assert 0 < gap.low < 0.1 < gap.high + 0.02 and mean_interval([0.5]).low == 0.5


def test_the_commands_print_figures_and_name_what_is_wrong(tmp_path):
    small, large = rows(200)
    good = tmp_path / "good.jsonl"
    lines = [{"prompt": f"What is {i} + {i}?", "small": a, "large": b} for i, (a, b) in enumerate(zip(small, large, strict=True))]
    good.write_text("\n".join(map(json.dumps, lines)))
    shown = RUN.invoke(app, ["eval", "outcomes", str(good)])
    assert shown.exit_code == 0 and "APGR" in shown.output and "AIQ" in shown.output
    sides = tmp_path / "sides.csv"
    sides.write_text("variant,score\n" + "".join(f"a,{x}\nb,{y}\n" for x, y in zip(small, large, strict=True)))
    shown = RUN.invoke(app, ["eval", "report", str(sides)])
    assert shown.exit_code == 0 and "b less a: +" in shown.output and "better" in shown.output
    for text, command in (
        ("", "outcomes"),
        ("prompt,small,large\nx,2,1\n", "outcomes"),
        ("a,b\n1,2\n", "report"),
        ("variant,score\na,x\n", "report"),
    ):
        bad = tmp_path / "bad.csv"
        bad.write_text(text)
        assert RUN.invoke(app, ["eval", command, str(bad)]).exit_code == 1
    assert RUN.invoke(app, ["eval", "outcomes", str(tmp_path / "none.csv")]).exit_code == 1
    assert RUN.invoke(app, ["eval", "outcomes", str(good), "--weights", str(good)]).exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        'prompt,small,large\n"a, b; c",0.5,1\n',
        'Prompt;small;large\r\n"a, b; c";0,5;1\r\n',
        '\ufeffprompt;small;large\r\n"a, b; c";0,5;1,0\r\n',
        "prompt\tsmall\tlarge\na, b; c\t0.5\t1\n",
        'prompt, small, large\n"a, b; c",.5,1\n',
    ],
)
def test_csv_is_read_as_spreadsheets_of_any_country_write_it(tmp_path, text):
    (tmp_path / "rows.csv").write_bytes(text.encode())
    (row,) = read_outcomes(tmp_path / "rows.csv")
    assert (row.prompt, row.small, row.large) == ("a, b; c", 0.5, 1.0)


@pytest.mark.parametrize("score", ["1" + "0" * 400, "-1" + "0" * 400, "NaN", "Infinity", "true", "[]", '"x"'])
def test_a_score_that_is_none_is_named_with_its_line(tmp_path, score):
    file = tmp_path / "outcomes.jsonl"
    file.write_text(f'{{"prompt": "a", "small": 0, "large": 1}}\n{{"prompt": "b", "small": 0, "large": {score}}}\n')
    with pytest.raises(EvalError, match=":2: `large` is a score"):
        read_outcomes(file)
