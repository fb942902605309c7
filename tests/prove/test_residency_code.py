"""The simulation of the real code finds nothing in it, and finds a leak at once where there is one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from _residency import mutation
from _residency.simulate import Violation, make_pool, run

import router
from router.residency import inflight
from router.residency.guard import GuardPolicy
from router.residency.label import Label

RUNS = 10_000
"""About ten seconds of CPU; `scripts/prove/residency --runs N` does as many as one likes."""


def test_no_run_violates_an_invariant():
    sent = 0
    for seed in range(RUNS):
        if seed % 2500 == 0:
            pool = make_pool(seed)
        sent += run(seed, pool)
    assert sent > RUNS / 2  # most runs do send something


def leaks(runs: int = 400) -> bool:
    pool = make_pool(3, 20)
    try:
        for seed in range(runs):
            run(seed, pool)
    except Violation:
        return True
    return False


@pytest.mark.parametrize(
    ("holder", "name", "bug"),
    [
        (Label, "meet", lambda self, other: other),
        (Label, "meet", Label.join),
        (inflight.InFlight, "recheck", lambda self, evidence_of, now: 0),
        (inflight, "translate_label", lambda label, old, new: label),
        (inflight.InFlight, "current", lambda self, ticket, facts: facts),
    ],
)
def test_a_planted_bug_leaks_in_the_simulation(monkeypatch, holder, name, bug):
    monkeypatch.setattr(GuardPolicy, "refuses", lambda self, permission, place, now: None)
    assert not leaks(100)
    monkeypatch.setattr(holder, name, bug)
    assert leaks()


def test_source_mutants_are_killed_and_the_source_itself_lives():
    mutation.preload()
    chosen = [mutant for mutant in mutation.mutants() if mutant.function in ("admits", "Label.meet")]
    assert len(chosen) > 15
    first = next(mutant for mutant in chosen if mutant.function == "Label.meet")
    assert not mutation.survives(first, 50)
    assert len(list(mutation.mutants())) > 250


DIALS = {"create_connection", "create_unix_connection", "open_connection", "open_unix_connection", "sock_connect"}
CLIENTS = {"httpx", "aiohttp", "urllib3", "requests", "http.client", "urllib.request"}


def test_only_the_pool_sends_requests_and_the_detector_on_its_local_socket():
    """I3: whoever in the router wants bytes sent goes through the pool of connections, behind the decision and the pass."""
    root = Path(router.__file__).parent
    dialling = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            if names & CLIENTS or (isinstance(node, ast.Attribute) and node.attr in DIALS):
                dialling.add(path.relative_to(root).as_posix())
    # The feed of cache events and the self-test bring nothing of any request: a pass in, hashes and numbers out.
    assert dialling == {"wire/upstream.py", "residency/classify/detector.py", "kv_feeds.py", "self_test.py"}
