"""The placement bench: loads are found, peers queue as their originals do, and goals are held against the best peer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.simulation.cluster import HOLD, Scenario, Simulation
from cluster.simulation.engine import SimulatedRequest
from cluster.simulation.outcome import Outcome
from cluster.simulation.trace import link_turns, make_documents_trace
from router.placement.profile import LLAMA_8B_H100

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from _placement import cli, sections
from _placement.cells import Cell, Traces, capacity
from _placement.peers import Dynamo
from _placement.sections import Plan

USUAL = Outcome(1000, 0.98, 0.2, 1.0, 2.0, 3.0, 0.05, 0.3, 0.0, 0.0, 0.0, 0, 10.0)


@pytest.mark.parametrize("breaks_at", [0.33, 0.9, 1.21, 2.4])
def test_the_load_at_which_a_policy_stops_keeping_the_limits_is_found(breaks_at):
    def run(cell):
        return replace(USUAL, met=0.99 if cell.load <= breaks_at else 0.5)

    assert capacity(Cell("any", "any", 1.0), run, 0.01) == pytest.approx(breaks_at, abs=0.006)


def test_dynamo_holds_requests_while_every_worker_has_too_much_pending_and_lets_them_go_in_order():
    peer = Dynamo(2, LLAMA_8B_H100)
    most = int(Dynamo.threshold * LLAMA_8B_H100.step_tokens)
    first = [SimulatedRequest(i, 0.0, most + 1, 10, ()) for i in range(2)]
    places = [peer.place(request, 0.0) for request in first]
    assert sorted(places) == [0, 1]
    later = [SimulatedRequest(i, 0.0, 100, 10, ()) for i in (2, 3)]
    assert [peer.place(request, 0.1) for request in later] == [HOLD, HOLD] and not list(peer.release(0.1))
    peer.on_first(first[0], 0.5)
    assert [(request.index, place) for request, place in peer.release(0.5)] == [(2, places[0]), (3, places[0])]


def test_dynamo_loses_no_request_past_saturation():
    requests = link_turns(make_documents_trace(300))
    Simulation(Scenario(LLAMA_8B_H100, 2, speed=100.0), requests, lambda number: Dynamo(2, LLAMA_8B_H100)).run()
    assert all(request.done > 0 for request in requests)


def test_goals_are_held_against_the_best_peer_of_each_figure_and_name_the_bound(tmp_path):
    figures = {
        "tidegate": replace(USUAL, met=0.99, ttft_p50=0.1),
        "dynamo": replace(USUAL, met=0.95, ttft_p50=0.2, ttft_p90=0.8),
        "lmetric": replace(USUAL, met=0.98, ttft_p50=0.4, ttft_p90=1.6),
    }
    plan = Plan(("dynamo", "lmetric"), ("synthetic",), ("8b",), quick=True)
    traces = Traces(tmp_path, 200)
    section = sections.near_saturation(
        plan, lambda cell: figures[cell.policy], traces, lambda text: None, {"synthetic": 0.9}, "0.9x"
    )
    values = {goal.text.split(" ")[0]: goal for goal in section.goals}
    assert values["misses"].value == pytest.approx(0.5, abs=0.01) and values["misses"].kept
    assert values["p50"].value == pytest.approx(0.5) and values["p50"].kept
    assert values["p90"].value == pytest.approx(1.25) and not values["p90"].kept
    assert "no policy gets below" in values["p90"].text


def test_figures_near_saturation_are_those_of_the_model_whose_loads_they_are_taken_at(tmp_path):
    asked = set()

    def run(cell):
        asked.add(cell.model)
        return USUAL

    traces = Traces(tmp_path, 200)
    bounds = {}
    for model in ("8b", "72b"):
        asked.clear()
        plan = Plan(("dynamo",), ("synthetic",), (model,), quick=True)
        section = sections.near_saturation(plan, run, traces, lambda text: None, {"synthetic": 0.9}, "0.9x")
        assert asked == {model}
        bounds[model] = section.rows[-1]["TTFT p50"]
    assert bounds["72b"] > 2 * bounds["8b"], "what nobody can be faster than follows the engine"


def test_without_public_data_the_bench_still_has_a_real_trace(tmp_path):
    traces = Traces(tmp_path)
    assert traces.names == ("synthetic", "tools*")
    rows = traces.rows("synthetic")
    assert len(rows) == 3993 and all(prompt > 0 and answer > 0 for _, prompt, answer, _ in rows)
    held, p50, p90 = traces.pooled("synthetic", "8b", 8)
    assert 0.2 < held < 0.5 and 0 < p50 < p90


def _csv(path: Path, *requests: tuple[float, int, int]) -> Path:
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{a},{b},{c}\n" for a, b, c in requests))
    return path


def test_a_trace_of_ones_own_takes_the_place_of_all_others_without_what_no_engine_holds(tmp_path, capsys):
    mine = _csv(tmp_path / "mine.csv", (0, 900_000, 20), *((i / 2, 500, 20) for i in range(300)))
    assert len(Traces(tmp_path, None, (mine,)).rows("mine.csv")) == 300
    out = ["--json", str(tmp_path / "out.json"), "--png", str(tmp_path / "out.png")]
    assert cli.main(["--only", "spill,noreuse", "--policies", "dynamo", "--quick", "--trace", str(mine), *out]) in (0, 1)
    said = capsys.readouterr().out
    assert "mine.csv" in said and "synthetic" not in said


@pytest.mark.parametrize("requests", [0, 10, 300])
def test_a_trace_that_says_nothing_is_refused_by_name(tmp_path, capsys, requests):
    mine = _csv(tmp_path / "mine.csv", *[(5.0, 500, 20)] * requests)
    assert cli.main(["--trace", str(mine)]) == 2 and "mine.csv: " in capsys.readouterr().out
    assert cli.main(["--trace", str(tmp_path / "none")]) == 2
