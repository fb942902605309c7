"""Remote media are refused under a restricted label, in every dialect; inline ones and tools are left alone."""

from __future__ import annotations

import pytest

from router.residency.label import Label
from router.residency.media import refuse_remote_media, remote_media
from router.wire.errors import ApiError
from tests.router.builders import make_policy


def user(*parts):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "see https://x.example/a.png"}, *parts]}]}


REMOTE = [
    user({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}),
    user({"type": "image_url", "image_url": "http://x.example/a.png"}),
    user({"image_url": " https://x.example/a.png"}),
    user({"type": "image_url", "image_url": {"url": "FILE:///etc/passwd"}}),
    user({"type": "image_url", "image_url": {"url": "//x.example/a"}}),
    user({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AA"}}),
    user({"type": "audio_url", "audio_url": {"url": "https://x.example/a.wav"}}),
    user({"type": "video_url", "video_url": {"url": "ftp://x.example/a"}}),
    user({"type": "image_url", "url": "https://x.example"}),
    user({"type": "tool_use", "uuid": "1", "input": {}, "image_url": "https://x.example/a.png"}),
    user({"type": "function_call", "uuid": "1", "audio_url": {"url": "https://x.example/a.wav"}}),
    user({"type": "image", "source": {"type": "url", "url": "https://x.example"}}),
    user({"type": "document", "source": {"url": "https://x.example"}}),
    user({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}),
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/a"}]}]},
    {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x.example/a.pdf"}]}]},
    {"documents": [{"content": [{"type": "image_url", "image_url": {"url": "https://x.example"}}]}]},
    {"messages": [[{"content": [{"image_url": {"url": "https://x.example"}}]}]]},
]
INLINE = [
    user(),
    user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}),
    user({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
    user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}),
    user({"type": "tool_use", "id": "1", "name": "fetch", "input": {"url": "https://x.example", "image_url": "https://x"}}),
    {"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_url": {"url": "https://x"}}}}}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"url":"https://x"}'}}]}]},
    {"messages": [{"role": "user", "content": "https://x.example/a.png"}], "metadata": {"image_url": "https://x"}},
    {"input": ["https://x.example"], "model": "https://x"},
]


@pytest.mark.parametrize("body", REMOTE)
def test_remote(body):
    policy = make_policy()
    assert remote_media(body)
    with pytest.raises(ApiError) as refusal:
        refuse_remote_media(body, policy.tags["local"], policy)
    assert (refusal.value.status, refusal.value.code) == (403, "residency_denied")
    assert "x.example" not in str(refusal.value.body(""))
    refuse_remote_media(body, policy.tags["any"], policy)
    with pytest.raises(ApiError):
        refuse_remote_media(body, Label(policy.tags["any"].process, policy.tags["eu"].store), policy)


@pytest.mark.parametrize("body", INLINE)
def test_inline(body):
    policy = make_policy()
    assert remote_media(body) is None
    refuse_remote_media(body, policy.tags["eu"], policy)


def test_where_nothing_lies_outside_no_engine_dials_there():
    policy = make_policy(zones={"eu": {}, "us": {}}, targets=[])
    remote, inline = REMOTE[0], INLINE[1]
    for tag in ("any", "local"):
        with pytest.raises(ApiError) as refusal:
            refuse_remote_media(remote, policy.tags[tag], policy)
        assert (refusal.value.status, refusal.value.code) == (403, "residency_denied")
        refuse_remote_media(inline, policy.tags[tag], policy)


def test_the_place_named_holds_no_content():
    assert remote_media({"messages": [{"my secret words": {"image_url": "http://x"}}]}) == "messages.image_url"
