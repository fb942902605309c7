"""The measurement: engines up, systems up, answers checked, then rounds in which every system takes its turn."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import bodies, load, mock_engine, procs, systems, verify
from .peers import Missing


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    systems: list[str]
    cases: list[str]
    targets: int = 4
    seconds: int = 5
    solo_seconds: int = 2
    rounds: int = 3
    connections: int = 32
    prompts: int = bodies.POOL
    port_base: int = 31000


@dataclass
class Sample:
    """One system, one case, one round."""

    loaded: load.Load
    alone: load.Load
    cpu_s: float
    rss_mb: float

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per complete response."""
        return self.cpu_s / max(1, self.loaded.requests) * 1e6


@dataclass
class Outcome:
    """Everything that came of a plan."""

    plan: Plan
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Running:
    """A system that is up."""

    name: str
    url: str
    pid: int


def execute(plan: Plan, bench: systems.Bench, say: Callable[[str], None]) -> Outcome:
    """Carry out a plan; every process it starts is gone when it returns or raises."""
    outcome = Outcome(plan)
    if load.generator() != "wrk":
        outcome.notes.append(load.NO_WRK)
    pools = {name: bodies.write_pool(bodies.CASES[name], bench.work, plan.prompts) for name in plan.cases}
    with contextlib.ExitStack() as stack:
        engines = _start_engines(plan, bench, stack)
        up = [Running(systems.DIRECT, bench.engines[0], engines[0].pid)]
        for number, name in enumerate(plan.systems):
            say(f"starting {name}")
            if started := _start_system(name, plan.port_base + 10 * number, plan, bench, outcome, stack):
                up.append(started)
        turns = list(_checked(up, plan, outcome, pools))
        for number in range(plan.rounds):
            shift = number % max(1, len(turns))
            for system, case in turns[shift:] + turns[:shift]:
                say(f"round {number + 1} of {plan.rounds}: {case}, {system.name}")
                _take(system, case, plan, outcome, pools[case])
    return outcome


def _start_engines(plan: Plan, bench: systems.Bench, stack: contextlib.ExitStack) -> list[subprocess.Popen[bytes]]:
    started, first = [], int(bench.engines[0].rsplit(":", 1)[1])
    shares = [plan.targets - plan.targets // 2, plan.targets // 2]
    for number, count in enumerate(share for share in shares if share):
        _require_free(first, count)
        argv = [sys.executable, mock_engine.__file__, "--first-port", str(first), "--count", str(count)]
        process = procs.start([*argv, "--model", bodies.MODEL], bench.work / f"engines-{number}.log")
        stack.callback(procs.stop, process)
        started.append(process)
        first += count
    for url in (bench.engines[0], bench.engines[-1]):
        _wait(url, bodies.CASES["json"], 20, started[-1])
    return started


def _require_free(first: int, count: int) -> None:
    for port in range(first, first + count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((systems.HOST, port))
            except OSError:
                raise Missing(f"port {port} is taken; choose others with --port-base") from None


def _wait(url: str, case: bodies.Case, limit_s: float, process: subprocess.Popen[bytes]) -> None:
    """Return once the system answers rightly; raise what was wrong at the end of the time."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return verify.check(url, case)
        except verify.WrongAnswer as error:
            if process.poll() is not None:
                raise verify.WrongAnswer(f"it ended with status {process.returncode} ({error})") from None
            if time.monotonic() > end:
                raise
        time.sleep(0.3)


def _start_system(
    name: str, port: int, plan: Plan, bench: systems.Bench, outcome: Outcome, stack: contextlib.ExitStack
) -> Running | None:
    try:
        launch = systems.SYSTEMS[name](bench, port)
        _require_free(port, 2)
    except Missing as error:
        outcome.missing[name] = str(error)
        return None
    log = bench.work / f"{name.replace('/', '-')}.log"
    process = procs.start(launch.argv, log, launch.env)
    stack.callback(procs.stop, process)
    first = next((case for case in plan.cases if _applies(name, case)), "json")
    try:
        _wait(launch.url, bodies.CASES[first], launch.ready_s, process)
    except verify.WrongAnswer as error:
        outcome.wrong[name, first] = f"{error}; its log: {log}{_tail(log)}"
        return None
    return Running(name, launch.url, process.pid)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-3:]
    return "".join(f"\n    {line[:160]}" for line in lines)


def _applies(system: str, case: str) -> bool:
    only = bodies.CASES[case].only
    return only is None or system == only


def _checked(up: list[Running], plan: Plan, outcome: Outcome, pools: dict[str, Path]) -> Iterator[tuple[Running, str]]:
    """The pairs that answer rightly, case by case, each warmed up."""
    for case in plan.cases:
        for system in up:
            if not _applies(system.name, case):
                continue
            try:
                verify.check(system.url, bodies.CASES[case])
                load.run(system.url, pools[case], plan.connections, 1)
            except (verify.WrongAnswer, load.LoadError) as error:
                outcome.wrong[system.name, case] = str(error)
                continue
            yield system, case


def _take(system: Running, case: str, plan: Plan, outcome: Outcome, pool: Path) -> None:
    procs.wait_idle(system.pid)
    before = procs.cpu_seconds(system.pid)
    try:
        loaded = load.run(system.url, pool, plan.connections, plan.seconds)
        procs.wait_idle(system.pid)
        cpu = procs.cpu_seconds(system.pid) - before
        alone = load.run(system.url, pool, 1, plan.solo_seconds)
    except load.LoadError as error:
        outcome.wrong[system.name, case] = str(error)
        return
    for taken in (loaded, alone):
        if taken.status_errors or not taken.requests:
            outcome.wrong[system.name, case] = f"under load: {taken.faults or 'no complete answer'}"
        elif taken.faults:
            outcome.notes.append(f"{system.name}, {case}: {taken.faults}")
    outcome.samples.setdefault((system.name, case), []).append(Sample(loaded, alone, cpu, procs.rss_mb(system.pid)))


def rows(outcome: Outcome) -> list[dict[str, object]]:
    """The result as plain records: medians over the rounds, and the range of the CPU time."""
    made: list[dict[str, object]] = []
    for (system, case), samples in outcome.samples.items():
        if (system, case) in outcome.wrong:
            continue
        cpu = [sample.cpu_us for sample in samples]

        def middle(values: list[float], digits: int) -> float:
            return round(statistics.median(values), digits)

        row: dict[str, object] = {
            "system": system,
            "case": case,
            "cpu_us_per_request": middle(cpu, 1),
            "p50_ms": middle([sample.loaded.p50_ms for sample in samples], 3),
            "p99_ms": middle([sample.loaded.p99_ms for sample in samples], 3),
            "rps": middle([sample.loaded.rps for sample in samples], 1),
            "cpu_us_min": round(min(cpu), 1),
            "cpu_us_max": round(max(cpu), 1),
            "alone_p50_ms": middle([sample.alone.p50_ms for sample in samples], 3),
            "alone_p99_ms": middle([sample.alone.p99_ms for sample in samples], 3),
            "rss_mb": middle([sample.rss_mb for sample in samples], 1),
            "requests": sum(sample.loaded.requests for sample in samples),
            "rounds": len(samples),
            "targets": outcome.plan.targets,
            "connections": outcome.plan.connections,
            "prompts": outcome.plan.prompts,
            "load": load.generator(),
        }
        if bodies.CASES[case].stream:
            row["cpu_us_per_chunk"] = middle([value / mock_engine.CHUNKS for value in cpu], 2)
        made.append(row)
    _add_latency(made)
    return made


def _add_latency(made: list[dict[str, object]]) -> None:
    floor = {row["case"]: row["alone_p50_ms"] for row in made if row["system"] == systems.DIRECT}
    for row in made:
        at = floor.get(row["case"])
        if isinstance(at, float) and isinstance(row["alone_p50_ms"], float):
            row["added_p50_ms"] = round(row["alone_p50_ms"] - at, 3)
