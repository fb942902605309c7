"""Every endpoint's prompt is counted, in UTF-8 bytes; what is malformed counts nothing."""

from __future__ import annotations

import pytest

from router.complexity.rule import last_user_text
from router.placement.targets import Endpoint
from router.prompt_size import asks_one_answer, media_parts, prompt_bytes

USER = {"role": "user", "content": "four"}


@pytest.mark.parametrize(
    ("endpoint", "body", "size"),
    [
        (Endpoint.CHAT, {"messages": [{"role": "system", "content": "be"}, USER]}, 6),
        (Endpoint.CHAT, {"messages": [USER], "system": "not a field of this dialect"}, 4),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "東京"}]}]}, 6),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 3),
        (Endpoint.CHAT, {"messages": ["x", 7, {"role": "user"}]}, 0),
        (Endpoint.MESSAGES, {"messages": [USER], "system": "be brief"}, 12),
        (Endpoint.MESSAGES, {"messages": [USER], "system": [{"type": "text", "text": "be brief"}]}, 12),
        (Endpoint.COUNT_TOKENS, {"messages": [USER], "system": "be brief"}, 12),
        (Endpoint.RESPONSES, {"input": "four", "instructions": "be brief"}, 12),
        (Endpoint.RESPONSES, {"input": [USER, {"role": "user", "content": [{"type": "input_text", "text": "five5"}]}]}, 9),
        (Endpoint.RESPONSES, {"input": [{"type": "function_call_output", "output": "sunny"}]}, 5),
        (Endpoint.COMPLETIONS, {"prompt": "four"}, 4),
        (Endpoint.COMPLETIONS, {"prompt": ["four", "five5"]}, 10),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}, 12),
        (Endpoint.COMPLETIONS, {"prompt": [[1, 2], [3]]}, 12),
        (Endpoint.COMPLETIONS, {"prompt": {"text": "x"}}, 0),
        (Endpoint.EMBEDDINGS, {"input": "four"}, 4),
        (Endpoint.TOKENIZE, {"messages": [USER]}, 4),
        (Endpoint.DETOKENIZE, {"tokens": [1, 2]}, 8),
        (Endpoint.RERANK, {"query": "four", "documents": ["five5", {"text": "six"}]}, 12),
        (Endpoint.SCORE, {"text_1": "four", "text_2": ["five5"]}, 9),
        (Endpoint.SCORE, {"queries": ["four"], "items": ["five5"]}, 9),
        (Endpoint.TRANSCRIPTIONS, {"model": "m", "prompt": "names"}, 5),
    ],
)
def test_sizes(endpoint, body, size):
    assert prompt_bytes(endpoint, body) == size


def test_complexity_reads_the_last_user_turn_of_a_responses_conversation():
    turns = [USER, {"role": "assistant", "content": "ok"}, {"role": "user", "content": [{"type": "input_text", "text": "last"}]}]
    assert last_user_text({"input": turns}) == "last"
    assert last_user_text({"input": ["one", "two"]}) == "one\ntwo"


@pytest.mark.parametrize(
    ("body", "one"),
    [
        ({}, True),
        ({"n": 1, "best_of": None, "prompt": "a"}, True),
        ({"prompt": [1, 2, 3]}, True),
        ({"prompt": ["a"]}, True),
        ({"n": 2}, False),
        ({"best_of": 3}, False),
        ({"prompt": ["a", "b"]}, False),
        ({"prompt": [[1], [2]]}, False),
        ({"n": "many"}, False),
        ({"n": []}, False),
    ],
)
def test_what_asks_for_several_answers_is_told_apart(body, one):
    assert asks_one_answer(body) is one


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"messages": [USER]}, 0),
        ({"messages": ["x", 7, {"role": "user"}, {"role": "user", "content": ["x", {"type": ["image"]}]}]}, 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "image_url"}]}]}, 0),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, 1),
        ({"messages": [{"role": "user", "content": [{"image_url": {"url": "x"}}]}]}, 1),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}, USER]}, 1),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]}, 1),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "an image"}]}]}, 0),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 1),
        ({"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, 1),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}, {"type": "image_url"}]}, USER]}, 2),
        ({"input": "image_url"}, 0),
    ],
)
def test_media_are_counted_wherever_a_turn_has_them(body, parts):
    assert media_parts(body) == parts
