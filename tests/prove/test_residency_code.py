"""The simulation of the real code finds a leak where there is one, and mutants of the source do not live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from _residency import mutation, planted
from _residency.cli import Notes
from _residency.simulate import make_pool

import router
from router.residency.label import Label


@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_leaks_in_the_simulation(bug):
    assert planted.is_caught(bug)


def test_without_a_bug_nothing_leaks_where_they_are_planted():
    assert planted.is_still_without()


def test_source_mutants_are_killed_and_the_source_itself_lives():
    mutation.preload()
    every = list(mutation.mutants())
    assert len(every) > 400 and len({mutant.name for mutant in every}) == len(every)
    pool = make_pool(7, 20)
    first = next(mutant for mutant in every if mutant.function == "Label.meet")
    assert not mutation.survives(first, pool, 50)
    harmless = first._replace(code=Label.meet.__code__)
    assert mutation.survives(harmless, pool, 50)


def test_mutants_that_are_said_to_be_equivalent_are_there():
    assert set(mutation.EQUIVALENT) <= {mutant.name for mutant in mutation.mutants()}


def test_a_proof_that_was_interrupted_goes_on_and_one_of_other_code_begins_anew(tmp_path):
    notes = Notes(tmp_path / "notes", "this code")
    notes.add("runs 0 to 999", [700, []])
    assert Notes(tmp_path / "notes", "this code").get("runs 0 to 999") == [700, []]
    assert Notes(tmp_path / "notes", "other code").get("runs 0 to 999") is None
    assert Notes(None, "this code").get("runs 0 to 999") is None


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
    assert dialling == {"wire/pool.py", "residency/classify/detector.py", "kv_feeds.py", "self_test.py"}
