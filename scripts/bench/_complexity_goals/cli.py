"""The goals of routing by complexity, each measured and met or missed.

Everything but `--final` is measured on the development part of the questions (five in six); `--final` shows what the part kept
back said the one time it was used, or uses it if that has not happened.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _complexity.data import Outcomes, find_data, load_parquet
from _complexity.fit import fit_gain

from _complexity_goals import final, protocols, reference, speed


@dataclass(frozen=True)
class Row:
    """One goal: what was asked, what was measured."""

    goal: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Bench:
    """Data and effort of a run."""

    sets: dict[str, Outcomes]
    quick: bool

    @property
    def mmlu(self) -> Outcomes:
        """RouteLLM's MMLU rows."""
        return self.sets["routellm_mmlu"]

    @property
    def gsm8k(self) -> Outcomes:
        """RouteLLM's GSM8K rows."""
        return self.sets["routellm_gsm8k"]

    @property
    def pro(self) -> Outcomes:
        """MMLU-Pro, Llama-3.1 8B and 70B."""
        return self.sets["mmlu_pro_llama31"]

    @property
    def tasks(self) -> Outcomes:
        """LLMRouter's thirteen tasks."""
        return self.sets["llmrouter_13tasks"]


def few(bench: Bench) -> list[Row]:
    """MMLU with 1,500 labels, with and without the subject with the parsing fault."""
    seeds = 3 if bench.quick else 5
    area, half, most = protocols.few_labels(bench.mmlu, 1500, seeds)
    clean, _, _ = protocols.few_labels(bench.mmlu, 1500, seeds, protocols.HS_MATHS)
    return [
        Row(
            "MMLU, 1,500 labels: APGR, CPT50, CPT80",
            ">= 0.65, <= 30, <= 64",
            f"{area:.3f}, {half:.1f}, {most:.1f}",
            area >= 0.65 and half <= 30 and most <= 64,
        ),
        at_least("  same without high_school_mathematics", clean, 0.625),
    ]


def mmlu(bench: Bench) -> list[Row]:
    """MMLU by folds, and on subjects never seen."""
    folds = protocols.curve(protocols.across_folds(bench.mmlu), bench.mmlu)
    groups = protocols.subject_groups(bench.mmlu, 5 if bench.quick else 10)
    unseen = protocols.curve(protocols.across_folds(bench.mmlu, groups), bench.mmlu)
    return [with_interval("MMLU 5-fold APGR", folds, 0.71), with_interval("  subjects never seen", unseen, 0.66)]


def gsm8k(bench: Bench) -> list[Row]:
    """GSM8K by folds, and from other benchmarks only."""
    folds = protocols.curve(protocols.across_folds(bench.gsm8k), bench.gsm8k)
    zero = protocols.curve(protocols.zero_shot(bench.gsm8k, [bench.mmlu, bench.tasks, bench.pro]), bench.gsm8k)
    return [with_interval("GSM8K 5-fold APGR", folds, 0.64), with_interval("  zero-shot (no GSM8K or MGSM row)", zero, 0.60)]


def pro(bench: Bench) -> list[Row]:
    """Llama-3.1 8B against 70B on MMLU-Pro."""
    found = protocols.curve(protocols.across_folds(bench.pro, steady=True), bench.pro)
    return [with_interval("Llama-3.1 8B -> 70B, MMLU-Pro 5-fold APGR", found, 0.57)]


def nine(bench: Bench) -> list[Row]:
    """The choice among nine models."""
    score, single, oracle = protocols.choose_among(bench.tasks, (0, 1, 2, 3, 4))
    row = at_least("choice among 9 models on 13 tasks", score, 0.65)
    return [Row(row.goal, row.wanted, f"{row.measured} (best single {single:.3f}, oracle {oracle:.3f})", row.met)]


def domains(bench: Bench) -> list[Row]:
    """The domain head, fitted on MMLU, tested on other questions of MMLU-Pro."""
    found = protocols.domain_scores([bench.mmlu], bench.pro)
    macro = float(np.mean([f1 for _, _, f1 in found.values()]))
    return [
        at_least("domain head, MMLU -> MMLU-Pro, macro-F1 of 7", macro, 0.74),
        at_least("  law recall", found["law"][1], 0.95),
    ]


def shares(bench: Bench) -> list[Row]:
    """The share under the same traffic and after a shift."""
    order = np.random.default_rng(0).permutation
    streams = {name: data.take(order(len(data))[:1300]).prompts for name, data in bench.sets.items()}
    gains = {name: speed.gains_of(prompts) for name, prompts in streams.items()}
    same, shifted, fixed = [], [], []
    for share in (0.1, 0.3, 0.5):
        for a in gains:
            for b in gains:
                if a != b:
                    x, y, z = speed.share_error(gains[a][:1000], gains[b], share)
                    same.append(x)
                    shifted.append(y)
                    fixed.append(z)
    return [
        Row("share held, same traffic, points off (worst)", "<= 2", f"{max(same):.2f}", max(same) <= 2),
        Row(
            "  300 requests after a shift (worst of 36)",
            "<= 2",
            f"{max(shifted):.2f} (a fixed threshold: {max(fixed):.0f})",
            max(shifted) <= 2,
        ),
    ]


def costs(bench: Bench) -> list[Row]:
    """What the decision costs."""
    rows = []
    for tokens, goal in ((50, 0.10), (500, 0.25), (4000, 0.40)):
        p50, p99 = min(speed.decision_ms(bench.pro.prompts, tokens) for _ in range(3))
        rows.append(
            Row(
                f"decision at {tokens} tokens, CPU ms: p50, p99",
                f"<= {goal:.2f}, <= {3 * goal:.2f}",
                f"{p50:.3f}, {p99:.3f}",
                p50 <= goal and p99 <= 3 * goal,
            )
        )
    error, took = speed.explanation(bench.mmlu.prompts[:300])
    rows.append(Row("explanation adds up; cost after dispatch", "<= 1e-6", f"{error:.1e}; {took:.3f} ms", error <= 1e-6))
    return rows


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "few": few,
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "pro": pro,
    "nine": nine,
    "domains": domains,
    "share": shares,
    "cost": costs,
}


def at_least(goal: str, value: float, wanted: float) -> Row:
    """A goal that is a lower bound on a number."""
    return Row(goal, f">= {wanted:g}", f"{value:.3f}", value >= wanted)


def with_interval(goal: str, found: protocols.Curve, wanted: float) -> Row:
    """A lower bound on an APGR, judged by its point estimate."""
    area = found.apgr
    text = f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}], CPT {found.cpt50:.1f} / {found.cpt80:.1f}"
    return Row(goal, f">= {wanted:g}", text, area.value >= wanted)


def main(arguments: list[str]) -> int:
    """Measure, print the table, and exit with 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench/complexity", description=__doc__)
    parser.add_argument("--data", help="folder with outcomes/*.parquet; default: $TIDEGATE_DATA, else ../shared/data")
    parser.add_argument("--quick", action="store_true", help="fewer seeds and groups: at most 5 minutes")
    parser.add_argument("--only", choices=sorted(PARTS), nargs="+", help="some of the parts")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--final", action="store_true", help="the part kept back: used once, shown ever after")
    parser.add_argument(
        "--reference", action="store_true", help="the design the goals were set against, on the same folds; about 3 minutes"
    )
    options = parser.parse_args(arguments)
    if options.final and (record := final.read_record()) is not None:
        print(final.describe(record))
        return 0 if all(row["value"] >= row["goal"] for row in record["figures"]) else 1
    started = time.monotonic()
    sets = {path.stem: load_parquet(path) for path in sorted(find_data(options.data).glob("*.parquet"))}
    if options.reference:
        for name, theirs, ours in reference.compare(sets, fit_gain):
            print(f"{name:56} reference {theirs:.3f}  this prior {ours:.3f}", flush=True)
        return 0
    bench = Bench({name: data if options.final else final.part(data).development for name, data in sets.items()}, options.quick)
    missing = {"routellm_mmlu", "routellm_gsm8k", "mmlu_pro_llama31", "llmrouter_13tasks"} - set(bench.sets)
    if missing:
        parser.error(f"outcome files are missing: {', '.join(sorted(missing))}")
    if options.final:
        record = final.measure_once(bench.sets)
        print(final.describe(record))
        return 0 if all(row["value"] >= row["goal"] for row in record["figures"]) else 1
    rows: list[Row] = []
    for name in options.only or PARTS:
        for row in PARTS[name](bench):
            rows.append(row)
            print(f"{'met   ' if row.met else 'MISSED'} {row.goal:48} {row.wanted:22} {row.measured}", flush=True)
    missed = [row for row in rows if not row.met]
    print(f"{len(rows) - len(missed)} of {len(rows)} goals met in {time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=bool), encoding="utf-8")
    return 1 if missed else 0
