"""A key that is revoked while four router processes use it: each of them stops taking it, and ends what is at work under it."""

from __future__ import annotations

import pytest
from _replicas.processes import Setting
from _replicas.revoking import measure_revocation


@pytest.fixture(autouse=True)
def _home_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", "")  # set by the proof; put back after the test


async def test_a_revoked_key_is_refused_by_every_replica_and_its_streams_end():
    found = await measure_revocation(Setting(replicas=4), rounds=2)
    assert found.problems == []
    assert len(found.last_taken_s) == 2
    assert found.streams_cut_s, "no stream was at work"
