"""The codes of `KeyedHash` against the standard library's HMAC."""

from __future__ import annotations

import hmac

from hypothesis import given
from hypothesis import strategies as st

from router.residency.keyed_hash import KeyedHash, keyed_hash


@given(key=st.binary(max_size=200), messages=st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_codes_are_those_of_hmac_sha256_message_after_message(key: bytes, messages: list[bytes]) -> None:
    codes = KeyedHash(key)
    assert [codes.hexdigest(message) for message in messages] == [hmac.new(key, m, "sha256").hexdigest() for m in messages]
    assert keyed_hash(key) is keyed_hash(bytes(key))


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(KeyedHash(b"secret"))
