"""`scripts/prove/residency`: laws, protocol, simulation and mutants, one line of verdict at the end."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer

from _residency import lattice, model, mutation, planted
from _residency.judge import Violation
from _residency.simulate import make_pool, run
from _residency.worlds import Rules

SHARE_TO_KILL = 0.95
_BATCH = 1000
_RUNS_PER_POOL = 5000
_RUNS_PER_MUTANT = 200
_TELL_EVERY_S = 15.0
_mutants: list[mutation.Mutant] = []
_pool: list[Rules] = []


class Notes:
    """What is done already: one JSON line per batch of runs or mutant, in a file that a later call goes on with.

    Args:
        path: the file; None keeps no notes.
        proved: what the notes are about; notes about anything else do not count.
    """

    def __init__(self, path: Path | None, proved: str) -> None:
        self._path = path
        self._proved = proved
        self._done: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                note = json.loads(line)
                if note["of"] == proved:
                    self._done[note["what"]] = note["result"]

    def get(self, what: str) -> Any:
        """The result of something that is done, else None."""
        return self._done.get(what)

    def add(self, what: str, result: Any) -> None:
        """Keep a result."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"of": self._proved, "what": what, "result": result}) + "\n")


def fingerprint(folders: Iterable[str]) -> str:
    """The SHA-256 of all Python source in some folders of the checkout."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((mutation.ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _in_processes(
    work: Callable[[Any], Any], items: dict[str, Any], notes: Notes, jobs: int, tell: Callable[[int], str]
) -> Iterator[tuple[str, Any]]:
    """Results by name as they come; what the notes have is not done again. A line now and then says how far it is."""
    told, done = time.monotonic(), 0
    with ProcessPoolExecutor(jobs) as executor:
        futures = {executor.submit(work, item): name for name, item in items.items() if notes.get(name) is None}
        for name in items:
            if (known := notes.get(name)) is not None:
                done += 1
                yield name, known
        for future in as_completed(futures):
            name, result = futures[future], future.result()
            notes.add(name, result)
            done += 1
            yield name, result
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                print(f"  {tell(done)}", flush=True)


def _simulate(batch: tuple[int, int]) -> tuple[int, list[str]]:
    """Some runs, in a process of their own: bodies that reached a target, and violations."""
    start, count = batch
    sent, violations = 0, []
    for seed in range(start, start + count):
        if seed == start or seed % _RUNS_PER_POOL == 0:
            pool = make_pool(seed // _RUNS_PER_POOL)
        try:
            sent += run(seed, pool)
        except Violation as violation:
            violations.append(f"seed {seed}: {violation}")
    return sent, violations


def _laws() -> int:
    refuted = lattice.refuted()
    print(f"laws: {len(lattice.theorems()) - len(refuted)} of {len(lattice.theorems())} proved for 64 zones and 64 duties")
    for theorem in refuted:
        print(f"  refuted: {theorem}")
    return len(refuted)


def _protocol() -> tuple[int, int, int]:
    """Violations of the protocol as it is, mutants caught, mutants there are."""
    violations, began = 0, time.monotonic()
    for name, mutants in (("as it is", ()), ("with a selector that offers anything", (model.ANY_SELECTOR,))):
        result = model.explore(*mutants)
        print(f"protocol {name}: {result.states} states, {result.broken or 'every invariant holds'}", flush=True)
        violations += result.broken is not None
    names = (*model.MUTANTS_THE_GUARD_STOPS, *model.MUTANTS_OF_THE_TRUSTED_BASE)
    missed = [name for name in names if not model.check(name)]
    seconds = time.monotonic() - began
    print(f"protocol mutants: {len(names) - len(missed)} of {len(names)} caught{_listed(missed)}, {seconds:.0f} s", flush=True)
    return violations, len(names) - len(missed), len(names)


def _planted() -> tuple[int, int]:
    """The same bugs in the real code: caught, and how many there are."""
    missed = [bug.name for bug in planted.BUGS if not planted.is_caught(bug)]
    missed += [] if planted.is_still_without() else ["none, and yet it leaks"]
    made = len(planted.BUGS)
    print(f"bugs planted in the real code: {made - len(missed)} of {made} caught{_listed(missed)}", flush=True)
    return made - len(missed), made


def _listed(missed: list[str]) -> str:
    return f": missed {', '.join(missed)}" if missed else ""


def _simulation(runs: int, first: int, jobs: int, notes: Notes) -> int:
    began, sent, violations = time.monotonic(), 0, list[str]()
    batches = {}
    for start in range(first, first + runs, _BATCH):
        count = min(_BATCH, first + runs - start)
        batches[f"runs {start} to {start + count - 1}"] = (start, count)

    def tell(done: int) -> str:
        seconds = time.monotonic() - began
        return f"simulation: {min(runs, done * _BATCH)} of {runs} runs, {len(violations)} violations, {seconds:.0f} s"

    for _, (found_sent, found) in _in_processes(_simulate, batches, notes, jobs, tell):
        sent += found_sent
        violations += found
    seconds = time.monotonic() - began
    print(
        f"simulation: {runs} runs, {sent} bodies sent, {len(violations)} violations of I1 I2 I5 I7 I8, {seconds:.0f} s",
        flush=True,
    )
    for violation in violations[:20]:
        print(f"  {violation}")
    return len(violations)


def _is_killed(index: int) -> bool:
    return not mutation.survives(_mutants[index], _pool, _RUNS_PER_MUTANT)


def _mutation(jobs: int, only: str, notes: Notes) -> bool:
    """Whether enough source mutants are killed, and every one that is said to be equivalent lives."""
    mutation.preload()
    _pool[:] = make_pool(7, 20)
    _mutants[:] = [mutant for mutant in mutation.mutants() if only in mutant.name]
    indices = {mutant.name: index for index, mutant in enumerate(_mutants)}
    began, killed = time.monotonic(), set[str]()

    def tell(done: int) -> str:
        return f"source mutants: {done} of {len(indices)} tried, {done - len(killed)} live, {time.monotonic() - began:.0f} s"

    for name, dead in _in_processes(_is_killed, indices, notes, jobs, tell):
        if dead:
            killed.add(name)
    equivalent = [name for name in indices if name in mutation.EQUIVALENT]
    for mutant in _mutants:
        if mutant.name not in killed:
            why = mutation.EQUIVALENT.get(mutant.name)
            print(f"  lives, equivalent: {mutant.name}: {why}" if why else f"  lives: {mutant.name} (line {mutant.line})")
    wrong = [name for name in equivalent if name in killed]
    for name in wrong:
        print(f"  is said to be equivalent, and was killed: {name}")
    asked, dead = len(indices) - len(equivalent), len(killed - set(equivalent))
    share = dead / asked if asked else 1.0
    seconds = time.monotonic() - began
    print(
        f"source mutants of the trusted base: {dead} of {asked} killed ({share:.1%}), "
        f"{len(equivalent)} more are equivalent, {seconds:.0f} s",
        flush=True,
    )
    return share >= SHARE_TO_KILL and not wrong


def main(
    runs: Annotated[int, typer.Option(min=1, help="Runs of the simulation; 100,000 take about a minute of one core.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The first run's seed.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    source_mutants: Annotated[bool, typer.Option(help="Mutate the source of the trusted base as well (minutes).")] = True,
    only: Annotated[str, typer.Option(help="Only source mutants whose name contains this.")] = "",
    notes: Annotated[
        Path | None, typer.Option(help="Keep here what is done, and do not do it again after an interruption.")
    ] = None,
) -> None:
    """Prove what can be proved of residency; the last line says `violations=0 runs=N mutants_caught=K/K` when all holds."""
    known = Notes(notes, fingerprint(("router", "cluster", "scripts/prove", "tests/router")))
    violations = _laws()
    broken, caught, seeded = _protocol()
    found, made = _planted()
    violations += broken + _simulation(runs, seed, jobs, known)
    enough = _mutation(jobs, only, known) if source_mutants else True
    print(f"violations={violations} runs={runs} mutants_caught={caught + found}/{seeded + made}")
    raise typer.Exit(0 if violations == 0 and (caught, found) == (seeded, made) and enough else 1)
