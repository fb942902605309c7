"""The lattice laws, and that unknown is admitted nowhere."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from router.residency.label import UNKNOWN, Evidence, Label, Vocabulary, admits

masks = st.integers(0, 2**6 - 1)
labels = st.builds(Label, process=masks, store=masks, duties=masks)
evidences = st.builds(Evidence, process=masks, store=masks, duties=masks, expires=st.sampled_from([5.0, math.inf]))


@given(labels, labels, labels)
def test_meet_is_a_semilattice(a, b, c):
    assert a.meet(a) == a
    assert a.meet(b) == b.meet(a)
    assert a.meet(b).meet(c) == a.meet(b.meet(c))
    assert a.meet(b).is_within(a) and a.meet(b).is_within(b)
    assert a.is_within(b) == (a.meet(b) == a)


@given(labels, labels, evidences, st.sampled_from([0.0, 5.0, 6.0]))
def test_a_stricter_label_never_admits_more(a, b, evidence, now):
    if admits(a.meet(b), evidence, now):
        assert admits(a, evidence, now) and admits(b, evidence, now)


@given(labels, evidences)
def test_admission_is_subset_and_expiry_is_sharp(label, evidence):
    inside = evidence.process != 0 and (evidence.process | label.process) == label.process
    inside = inside and (evidence.store | label.store) == label.store and (label.duties | evidence.duties) == evidence.duties
    assert admits(label, evidence, 4.9) == inside
    assert admits(label, evidence, 5.0) == (inside and evidence.expires == math.inf)


def test_a_zone_outside_the_vocabulary_is_unknown_and_no_label_of_it_admits_that():
    words = Vocabulary(("de", "fr"), ("baa",))
    everywhere = Label(words.zone_mask(words.zones), words.zone_mask(words.zones))
    strange = words.zone_mask(["mars"])
    assert strange == UNKNOWN and words.zone_names(strange) == ("?",)
    assert everywhere.process & UNKNOWN == 0
    assert not admits(everywhere, Evidence(strange, words.zone_mask(["de"])), 0)
    assert not admits(everywhere, Evidence(words.zone_mask(["de", "mars"]), words.zone_mask(["de"])), 0)
    assert admits(everywhere, Evidence(words.zone_mask(["de"]), words.zone_mask(["fr"])), 0)
    assert words.zone_names(words.zone_mask(["fr", "de"])) == ("de", "fr")
    assert words.duty_names(words.duty_mask(["baa"])) == ("baa",)


def test_the_join_asks_only_for_the_duties_that_both_ask_for():
    assert Label(0b01, 0b01, 0b011).join(Label(0b10, 0b10, 0b110)) == Label(0b11, 0b11, 0b010)
