"""One authenticator, every spelling; labels that only tighten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.identity.keys import authenticate
from router.residency.resolve import read_tags, resolve_label
from router.wire.errors import ApiError
from tests.router.builders import KEY, SPILL_KEY, grant_of, make_policy

POLICY = make_policy()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", f"Bearer {KEY}".encode())],
        [(b"authorization", f"bearer  {KEY} ".encode())],
        [(b"x-api-key", KEY.encode())],
        [(b"x-api-key", KEY.encode()), (b"authorization", f"Bearer {KEY}".encode())],
    ],
)
def test_accepted(headers):
    assert authenticate(headers, POLICY.keys).id == "plain"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"")], 401),
        ([(b"authorization", b"Bearer ")], 401),
        ([(b"authorization", f"Basic {KEY}".encode())], 401),
        ([(b"authorization", b"Bearer x" + b"y" * 10_000)], 401),
        ([(b"x-api-key", KEY.encode()[:-1])], 401),
        ([(b"x-api-key", KEY.encode()), (b"authorization", f"Bearer {SPILL_KEY}".encode())], 400),
        ([(b"x-api-key", KEY.encode()), (b"x-api-key", SPILL_KEY.encode())], 400),
    ],
)
def test_refused(headers, status):
    with pytest.raises(ApiError) as refusal:
        authenticate(headers, POLICY.keys)
    assert refusal.value.status == status
    assert KEY not in refusal.value.message


@given(st.binary(max_size=80))
def test_no_other_bytes_are_a_key(value):
    with pytest.raises(ApiError):
        authenticate([(b"x-api-key", value)], POLICY.keys)


@given(st.lists(st.sampled_from(["eu", "us", "phi", "local", "any", "cloud"]), max_size=5), st.sampled_from([KEY, SPILL_KEY]))
def test_tags_only_tighten(tags, key):
    grant = grant_of(POLICY, key)
    try:
        label = resolve_label(grant, tags, POLICY)
    except ApiError as refusal:
        assert refusal.code == "residency_denied"
        return
    assert label.is_within(grant.ceiling)
    assert all(label.is_within(POLICY.tags[tag]) for tag in tags)


@pytest.mark.parametrize("value", [b"", b",", b"eu,", b"e u", b"eu;us", b"\xff", b"a" * 65, b"eu,,us", b",".join([b"eu"] * 17)])
def test_unreadable_tags_are_refused(value):
    with pytest.raises(ApiError) as refusal:
        read_tags([(b"x-tidegate-residency", value)])
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "name", [b"x-tidegate-residancy", b"x-tidegate-tags", b"x-tidegate-zone", b"x-tidegate-", b"x-tidegate-" + b"a" * 999]
)
def test_a_header_of_ours_that_there_is_not_is_refused(name):
    """It may have been meant for a tag, and would not be heeded."""
    others = [(b"x-tidegate-mode", b"vote"), (b"x-tidegate-priority", b"low"), (b"x-tidegate-subject", b"p"), (b"x-other", b"")]
    assert read_tags(others) == ()
    with pytest.raises(ApiError) as refusal:
        read_tags([*others, (name, b"phi")])
    assert refusal.value.status == 400 and "`x-tidegate-residency`" in refusal.value.message
    assert len(refusal.value.message) < 300 and "phi" not in refusal.value.message


def test_tags_of_several_headers_all_count():
    assert read_tags([(b"x-tidegate-residency", b"eu, phi"), (b"a", b"b"), (b"x-tidegate-residency", b"us")]) == (
        "eu",
        "phi",
        "us",
    )
