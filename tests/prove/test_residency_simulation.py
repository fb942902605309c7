"""The simulation of the real code: a hundred thousand random runs, and no invariant is violated in any."""

from __future__ import annotations

import pytest
from _residency.simulate import make_pool, run

RUNS = 100_000
"""Under a minute of one core; `scripts/prove/residency --runs N` does as many as one likes."""
PARTS = 20


@pytest.mark.parametrize("part", range(PARTS))
def test_no_run_violates_an_invariant(part):
    pool, runs = make_pool(part), RUNS // PARTS
    sent = sum(run(seed, pool) for seed in range(part * runs, (part + 1) * runs))
    assert sent > runs / 2  # most runs do send something
