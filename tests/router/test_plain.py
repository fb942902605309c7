"""What counts as nothing but text is never looked at for media: so none may be in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.residency.media import remote_media
from router.residency.plain import is_plain

URL = "https://example.org/scan.png"
TEXT = {"role": "user", "content": "see https://example.org/scan.png"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(URL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "image_url", "url", "source", "uuid", "text"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        ({"model": "m", "messages": [TEXT, TEXT], "stop": ["a"], "temperature": 0.5, "seed": None}, True),
        ({"prompt": "x", "stream": True}, True),
        ({"messages": [{**TEXT, "name": "x"}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, False),
        ({"messages": [{"role": "user", "image_url": URL}]}, False),
        ({"messages": [TEXT, ["x"]]}, False),
        ({"prompt": [1, 2]}, False),
        ({"stream_options": {"include_usage": True}}, False),
    ],
)
def test_plain_is_text_and_turns_of_text(body, plain):
    assert is_plain(body) is plain


@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt", "image_url", "source"]), values, max_size=4))
def test_nothing_plain_has_parts_that_could_be_media(body):
    if not is_plain(body):
        return
    parts = [item for value in body.values() if type(value) is list for item in value if type(item) is dict]
    assert all(part.keys() == {"role", "content"} and type(part["content"]) is str for part in parts)
    assert remote_media(body) is None
