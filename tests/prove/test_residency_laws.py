"""The laws of labels hold for all of them, and every order of events of the protocol keeps the invariants."""

from __future__ import annotations

import pytest
from _residency import lattice, model

from router.residency.label import Label


def test_every_theorem_holds():
    assert len(lattice.theorems()) >= 14
    assert lattice.refuted() == []


def test_the_prover_refutes_a_wrong_law(monkeypatch):
    monkeypatch.setattr(Label, "meet", Label.join)
    assert any(name.startswith("meet is the greatest lower bound") for name in lattice.refuted())


def test_no_order_of_events_breaks_an_invariant():
    result = model.explore()
    assert result.broken is None
    assert result.states > 100_000


def test_the_guard_stops_whatever_a_selector_offers():
    assert model.explore(model.ANY_SELECTOR).broken is None


def test_without_guard_and_with_fresh_views_only_a_bug_can_leak():
    assert model.explore(*model.WITHOUT_GUARD).broken is None


@pytest.mark.parametrize("name", [*model.MUTANTS_THE_GUARD_STOPS, *model.MUTANTS_OF_THE_TRUSTED_BASE])
def test_every_seeded_mutant_is_caught(name):
    assert model.check(name)
