import math

import pytest

from cluster.labels import UNKNOWN_ZONE, place_of, why_unknown, zone_of
from router.residency.label import UNKNOWN, Evidence, Label, Vocabulary, admits

ZONES = ("eu", "us")
KEY = "tidegate.io/zone"


@pytest.mark.parametrize("labels", [None, {}, {KEY: ""}, {KEY: "mars"}, {KEY: "EU"}, {"zone": "eu"}, {KEY: "eu+us"}])
def test_what_cannot_be_told_is_admitted_by_no_label(labels):
    words = Vocabulary(ZONES)
    place = place_of(zone_of(labels, KEY, ZONES), "eu", [])
    evidence = Evidence(words.zone_mask(place.process), words.zone_mask(place.store))
    assert evidence.process == UNKNOWN
    everything = words.zone_mask(ZONES)
    assert not admits(Label(everything, everything), evidence, -math.inf)
    assert KEY in str(why_unknown(labels, KEY, ZONES))


def test_a_declared_zone_is_taken_from_the_configured_label():
    assert zone_of({KEY: "eu", "other": "us"}, KEY, ZONES) == "eu"
    assert zone_of({KEY: "eu", "other": "us"}, "other", ZONES) == "us"
    assert why_unknown({KEY: "eu"}, KEY, ZONES) is None


def test_duties_hold_in_the_zone_they_were_stated_for_only():
    assert place_of("eu", "eu", ["b", "a"]).duties == ("a", "b")
    assert place_of("us", "eu", ["a"]).duties == ()
    assert place_of(UNKNOWN_ZONE, "eu", ["a"]).duties == ()
