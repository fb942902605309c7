"""`scripts/prove/residency`: laws, protocol, simulation and mutants, one line of verdict at the end."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import typer

from _residency import lattice, model, mutation
from _residency.simulate import Violation, make_pool, run

SHARE_TO_KILL = 0.95
_BATCH = 1000
_RUNS_PER_POOL = 5000
_RUNS_PER_MUTANT = 200


def _simulate(start: int, count: int) -> tuple[int, list[str]]:
    """Some runs, in a process of their own: bodies that reached a target, and violations."""
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
    violations = 0
    for name, mutants in (("as it is", ()), ("with a selector that offers anything", (model.ANY_SELECTOR,))):
        result = model.explore(*mutants)
        print(f"protocol {name}: {result.states} states, {result.broken or 'every invariant holds'}")
        violations += result.broken is not None
    names = (*model.MUTANTS_THE_GUARD_STOPS, *model.MUTANTS_OF_THE_TRUSTED_BASE)
    missed = [name for name in names if not model.check(name)]
    print(
        f"protocol mutants: {len(names) - len(missed)} of {len(names)} caught{': missed ' + ', '.join(missed) if missed else ''}"
    )
    return violations, len(names) - len(missed), len(names)


def _simulation(runs: int, first: int, workers: int) -> int:
    started, sent, violations = time.monotonic(), 0, []
    batches = [(start, min(_BATCH, first + runs - start)) for start in range(first, first + runs, _BATCH)]
    with ProcessPoolExecutor(workers) as executor:
        for found_sent, found in executor.map(_simulate, *zip(*batches, strict=True)):
            sent += found_sent
            violations += found
    seconds = time.monotonic() - started
    print(f"simulation: {runs} runs, {sent} bodies sent, {len(violations)} violations of I1 I2 I5 I7 I8, {seconds:.0f} s")
    for violation in violations[:20]:
        print(f"  {violation}")
    return len(violations)


def _is_killed(index: int) -> bool:
    return not mutation.survives(_mutants[index], _RUNS_PER_MUTANT)


_mutants: list[mutation.Mutant] = []


def _mutation(workers: int, only: str) -> tuple[int, int]:
    mutation.preload()
    _mutants[:] = [mutant for mutant in mutation.mutants() if only in f"{mutant.module}.{mutant.function}"]
    with ProcessPoolExecutor(workers) as executor:
        killed = list(executor.map(_is_killed, range(len(_mutants)), chunksize=4))
    for mutant, dead in zip(_mutants, killed, strict=True):
        if not dead:
            print(f"  lives: {mutant.module}.{mutant.function}, line {mutant.line}: {mutant.change}")
    print(f"source mutants of the trusted base: {sum(killed)} of {len(killed)} killed ({sum(killed) / len(killed):.1%})")
    return sum(killed), len(killed)


def main(
    runs: Annotated[
        int, typer.Option(min=1, help="Runs of the simulation; 100,000 take a minute or two of two cores.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="The first run's seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    source_mutants: Annotated[bool, typer.Option(help="Mutate the source of the trusted base as well (minutes).")] = True,
    only: Annotated[str, typer.Option(help="Only source mutants of functions whose name contains this.")] = "",
) -> None:
    """Prove what can be proved of residency; the last line says `violations=0 runs=N mutants_caught=K/K` when all holds."""
    violations = _laws()
    broken, caught, seeded = _protocol()
    violations += broken + _simulation(runs, seed, workers)
    good = True
    if source_mutants:
        killed, made = _mutation(workers, only)
        good = killed >= SHARE_TO_KILL * made
    print(f"violations={violations} runs={runs} mutants_caught={caught}/{seeded}")
    raise typer.Exit(0 if violations == 0 and caught == seeded and good else 1)
