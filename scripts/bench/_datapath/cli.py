"""The command line of `scripts/bench/datapath`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from . import bodies, footprint, goals, mock_engine, records, report, run, systems

ROOT = Path(__file__).resolve().parents[3]
MOST_TARGETS = 256
ENGINES_AT = 500
"""The engines' ports start so far above the systems' own."""
ABOUT = f"""\
What a request costs on its way through a router, in CPU time, latency and throughput.

Simulated vLLM engines (they answer at once and compute nothing) stand behind each system; `wrk` asks. A JSON case is
one chat completion with a prompt of so many tokens; sse64 is a stream of {mock_engine.CHUNKS} chunks about 1 ms apart.
Systems take turns in every round, so that whatever else the machine does meets all of them. CPU time per request is
the figure to compare: it counts all processes of a system and hardly depends on the load of the machine, whereas
throughput and latency do. tidegate decides in full: key, label, placement, receipt; json-auto leaves the model to it, too, so
that the shipped prior judges every request (two tiers, a share of 30 %). The peers answer the same prompts in json.

Peers come from PyPI into .bench/ in this checkout; one that cannot be had is reported as missing. Ray Serve's simulated
engines are its own replicas, whose few microseconds count as its own.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("datapath", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within 5 minutes: most systems, the three main cases, fewer turns")
    parser.add_argument("--memory", action="store_true", help="instead: what 10,000 idle connections and 1,000 streams take")
    parser.add_argument("--idle", type=_positive, default=10_000, help="--memory: idle keep-alive connections")
    parser.add_argument("--live", type=_positive, default=1_000, help="--memory: live streams")
    parser.add_argument("--minutes", type=float, default=1.0, help="--memory: how long connections come and go afterwards")
    parser.add_argument("--systems", type=_names(systems.SYSTEMS), help=f"of {', '.join(systems.SYSTEMS)}")
    parser.add_argument("--without", type=_names(systems.SYSTEMS), default=[], help="systems to leave out")
    parser.add_argument("--cases", type=_names(bodies.CASES), help=f"of {', '.join(bodies.CASES)}")
    parser.add_argument(
        "--targets",
        type=_numbers,
        help="engines behind each system; json and sse64 again with every further number (default 4,64,256; quick: 4,256)",
    )
    parser.add_argument("--seconds", type=_positive, help="length of one loaded run")
    parser.add_argument("--rounds", type=_positive, help="times every system takes its turn")
    parser.add_argument("--connections", type=_positive, default=32)
    parser.add_argument("--prompts", type=_positive, default=bodies.POOL, help="different prompts the load cycles through")
    parser.add_argument("--port-base", type=_positive, default=31000)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs tidegate (default: this one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--png", type=Path, metavar="FILE", default=ROOT / ".bench" / "datapath.png")
    parser.add_argument("--no-png", action="store_true")
    return parser


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _numbers(text: str) -> list[int]:
    values = [_positive(part) for part in text.split(",")]
    if max(values) > MOST_TARGETS:
        raise argparse.ArgumentTypeError(f"at most {MOST_TARGETS}")
    return values


def _plan(options: argparse.Namespace) -> run.Plan:
    chosen = options.systems or (systems.QUICK if options.quick else list(systems.SYSTEMS))
    first, *more = dict.fromkeys(options.targets or ([4, 256] if options.quick else [4, 64, 256]))
    cases = options.cases or (["json", "json-auto", "sse64"] if options.quick else list(bodies.CASES))
    cases += [f"{case}@{number}" for number in more for case in ("json", "sse64") if case in cases]
    return run.Plan(
        systems=[name for name in dict.fromkeys(chosen) if name not in options.without],
        cases=cases,
        targets=first,
        seconds=options.seconds or (2 if options.quick else 5),
        solo_seconds=1 if options.quick else 2,
        rounds=options.rounds or (2 if options.quick else 4),
        connections=options.connections,
        prompts=options.prompts,
        port_base=options.port_base,
        many=systems.QUICK_MANY if options.quick else systems.MANY_TARGETS,
        crowd=not options.quick,
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit status: 0 measured or honestly missing, 1 a wrong answer, 2 it could not run."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    work, console = ROOT / ".bench", report.console()
    work.mkdir(exist_ok=True)
    if options.memory:
        return footprint.main(console, work, options.idle, options.live, options.minutes)
    plan = _plan(options)
    engines = [f"http://{systems.HOST}:{plan.port_base + ENGINES_AT + number}" for number in range(plan.engines)]
    bench = systems.Bench(ROOT, work, options.python, engines, install_s=90 if options.quick else 600)
    try:
        interpreter = systems.interpreter_of(options.python)
        with Console(stderr=True).status("starting") as status:
            outcome = run.execute(plan, bench, status.update)
        outcome.interpreter = interpreter
        outcome.notes.append(f"tidegate ran under {interpreter}")
    except KeyboardInterrupt:
        console.print("stopped; everything it had started is down again")
        return 130
    except (run.Missing, run.verify.WrongAnswer) as error:
        console.print(f"[red]cannot run[/]: {error}", highlight=False)
        return 2
    rows = records.rows(outcome)
    report.show(console, outcome, rows)
    report.show_goals(console, goals.judge(rows, footprint.last(work), footprint.last(work, "throughput"), few=plan.targets))
    if options.json:
        report.write_json(options.json, rows)
    if not options.no_png:
        console.print(report.draw(options.png, rows), highlight=False)
    return 1 if outcome.wrong else 0
