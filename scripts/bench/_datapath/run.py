"""The measurement: engines up, systems up, answers checked, then rounds in which every system takes its turn."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import bodies, load, mock_engine, procs, systems, verify
from .peers import Missing

SLOW_CONNECTIONS, SLOW_SECONDS = 8, 8


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    systems: list[str]
    cases: list[str]
    """Names for `bodies.find`."""
    targets: int = 4
    """Engines behind a system in the cases that name no number of their own."""
    seconds: int = 5
    solo_seconds: int = 2
    rounds: int = 3
    connections: int = 32
    prompts: int = bodies.POOL
    port_base: int = 31000
    many: tuple[str, ...] = systems.MANY_TARGETS
    """Systems that take part in the cases with a number of targets of their own."""
    crowd: bool = True
    """Whether slow systems are also loaded by as many connections as the others, for their latency."""

    @property
    def engines(self) -> int:
        """Engines that the run needs in all."""
        return max([self.targets, *(bodies.find(name).targets or 0 for name in self.cases)])

    def rounds_of(self, system: str) -> int:
        """Slow systems take one turn in three: their costs are so large that spread does not matter."""
        return max(1, self.rounds // 3) if system in systems.SLOW else self.rounds

    def load_of(self, system: str) -> tuple[int, int]:
        """Connections and seconds of a loaded run.

        What is half done when the time is over has cost CPU and does not count as a request. So that this stays small beside
        the whole, slow systems get fewer connections for longer.
        """
        if system in systems.SLOW:
            return min(SLOW_CONNECTIONS, self.connections), max(SLOW_SECONDS, self.seconds)
        return self.connections, self.seconds

    def needs_crowd(self, system: str) -> bool:
        """Whether latency and throughput need a loaded run besides the one that CPU time is counted in."""
        return self.crowd and self.load_of(system)[0] < self.connections


@dataclass
class Sample:
    """One system, one case, one round."""

    loaded: load.Load
    alone: load.Load
    cpu_s: float
    rss_mb: float
    crowd: load.Load | None = None
    """A run with as many connections as other systems get, where `loaded` has fewer."""

    @property
    def busy(self) -> load.Load:
        """Where latency under load and throughput are read."""
        return self.crowd or self.loaded

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
    interpreter: str = ""
    """What ran tidegate."""


@dataclass
class Running:
    """A system that is up."""

    name: str
    url: str
    pid: int
    targets: int

    def answers(self, case: bodies.Case, plan: Plan) -> bool:
        """Whether the case is measured on this one."""
        if (case.only is not None and self.name != case.only) or not systems.measured(self.name, case, plan.many):
            return False
        wanted = case.targets or plan.targets
        # The engine itself is one engine, however many there are.
        return wanted == (plan.targets if self.name == systems.DIRECT else self.targets)


def execute(plan: Plan, bench: systems.Bench, say: Callable[[str], None]) -> Outcome:
    """Carry out a plan; every process it starts is gone when it returns or raises."""
    outcome = Outcome(plan)
    if load.generator() != "wrk":
        outcome.notes.append(load.NO_WRK)
    pools = {name: bodies.write_pool(bodies.find(name), bench.work, plan.prompts) for name in plan.cases}
    with contextlib.ExitStack() as stack:
        engines = _start_engines(plan, bench, stack)
        up = [Running(systems.DIRECT, bench.engines[0], engines[0].pid, plan.targets)]
        up += _start_systems(plan, bench, outcome, stack, say)
        say("warming up")
        turns = list(_checked(up, plan, outcome, pools))
        for number in range(plan.rounds):
            shift = number % max(1, len(turns))
            for system, case in turns[shift:] + turns[:shift]:
                if number < plan.rounds_of(system.name):
                    say(f"round {number + 1} of {plan.rounds}: {case}, {system.name}")
                    _take(system, case, plan, outcome, pools[case])
    return outcome


def _start_engines(plan: Plan, bench: systems.Bench, stack: contextlib.ExitStack) -> list[subprocess.Popen[bytes]]:
    started, first = [], int(bench.engines[0].rsplit(":", 1)[1])
    shares = [plan.engines - plan.engines // 2, plan.engines // 2]
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


def _start_systems(
    plan: Plan, bench: systems.Bench, outcome: Outcome, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> list[Running]:
    """Start every system, once per number of targets that its cases ask for, and return those that answer rightly."""
    begun, port = [], plan.port_base
    for name in plan.systems:
        for targets, case in _instances(name, plan).items():
            say(f"starting {name} with {targets} targets")
            some = replace(bench, engines=bench.engines[:targets])
            try:
                launch = systems.SYSTEMS[name](some, port)
                _require_free(port, 2)
            except Missing as error:
                outcome.missing[name] = str(error)
                break
            log = bench.work / f"{name.replace('/', '-')}-{targets}.log"
            process = procs.start(launch.argv, log, launch.env)
            stack.callback(procs.stop, process)
            begun.append((Running(name, launch.url, process.pid, targets), case, launch, process, log))
            port += 10
    up = []
    for system, case, launch, process, log in begun:
        say(f"waiting for {system.name} with {system.targets} targets")
        try:
            _wait(launch.url, case, launch.ready_s, process)
            up.append(system)
        except verify.WrongAnswer as error:
            outcome.wrong[system.name, case.name] = f"{error}; its log: {log}{_tail(log)}"
    return up


def _instances(name: str, plan: Plan) -> dict[int, bodies.Case]:
    """How many targets the system is started with, and a case of each to try it with."""
    found: dict[int, bodies.Case] = {}
    for case in map(bodies.find, plan.cases):
        targets = case.targets or plan.targets
        if targets not in found and Running(name, "", 0, targets).answers(case, plan):
            found[targets] = case
    return found


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-3:]
    return "".join(f"\n    {line[:160]}" for line in lines)


def _checked(up: list[Running], plan: Plan, outcome: Outcome, pools: dict[str, Path]) -> Iterator[tuple[Running, str]]:
    """The pairs that answer rightly, case by case, each warmed up."""
    for case in plan.cases:
        for system in up:
            if not system.answers(bodies.find(case), plan):
                continue
            try:
                verify.check(system.url, bodies.find(case))
                load.run(system.url, pools[case], plan.load_of(system.name)[0], 1)
            except (verify.WrongAnswer, load.LoadError) as error:
                outcome.wrong[system.name, case] = str(error)
                continue
            yield system, case


def _take(system: Running, case: str, plan: Plan, outcome: Outcome, pool: Path) -> None:
    procs.wait_idle(system.pid)
    before = procs.cpu_seconds(system.pid)
    try:
        loaded = load.run(system.url, pool, *plan.load_of(system.name))
        procs.wait_idle(system.pid)
        cpu = procs.cpu_seconds(system.pid) - before
        crowd = None
        if plan.needs_crowd(system.name):
            crowd = load.run(system.url, pool, plan.connections, plan.load_of(system.name)[1])
            procs.wait_idle(system.pid)
        alone = load.run(system.url, pool, 1, plan.solo_seconds)
    except load.LoadError as error:
        outcome.wrong[system.name, case] = str(error)
        return
    for taken in (loaded, alone, *([crowd] if crowd else [])):
        if taken.status_errors or not taken.requests:
            outcome.wrong[system.name, case] = f"under load: {taken.faults or 'no complete answer'}"
        elif taken.faults:
            outcome.notes.append(f"{system.name}, {case}: {taken.faults}")
    outcome.samples.setdefault((system.name, case), []).append(Sample(loaded, alone, cpu, procs.rss_mb(system.pid), crowd))
