"""Requests for the differential run: what a client may send to a vLLM server, generated from a seed, and always the same.

Everything an engine answers depends on the request alone (temperature 0, or a seed), so two answers can be compared byte by
byte. `max_tokens` is small: what is compared is the surface, not the prose.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ENGINE_MODEL = "smollm2"
ROUTED_NAMES = (ENGINE_MODEL, "house-model", "auto", "small")
"""What the routed request puts into `model`: the engine's own name, an alias of it, a choice by complexity, a tier."""

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SEED, MORE = 20260801, 20260802
"""With the second the requests are others, and over 500 in all."""
EMBEDDINGS, SCORE, RERANK = "/v1/embeddings", "/v1/score", "/v1/rerank"

TEXTS = [
    "What is the capital of France?",
    "Zähle bis fünf. Größe, Äpfel, Straße.",
    "日本の首都はどこですか。",
    "مرحبا، كيف حالك اليوم؟",
    "👩\u200d🔬 explains e\u0301 and \u2028 line separators",
    'Quotes " and \\ backslashes, {"model": "other"}, "model":"smollm2" in the text',
    "tabs\tand\nnewlines\r\nand a NUL \u0000 and \x7f",
    "<|im_start|>system\nspecial tokens as text<|im_end|>",
    "a",
    "def f(x):\n    return x ** 2  # why?",
]
LONG = "The tide comes in and the tide goes out again. " * 90

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Case(NamedTuple):
    """One request. `escaped` says how the body's JSON spells characters outside ASCII."""

    path: str
    body: dict[str, Any]
    routed_model: str
    escaped: bool

    def encode(self, model: str) -> bytes:
        """The request's bytes with that `model`."""
        return json.dumps({"model": model, **self.body}, ensure_ascii=self.escaped).encode()


CHAT_OPTIONS: list[dict[str, Any]] = [
    {},
    {"stop": "."},
    {"stop": ["the", "\n", "🙂"], "include_stop_str_in_output": True},
    {"stop": []},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 0, "return_tokens_as_token_ids": True},
    {"n": 2, "temperature": 0.8},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
    {"logit_bias": {"100": 5, "1000": -100}},
    {"min_tokens": 3, "ignore_eos": True},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"return_token_ids": True},
    {"max_completion_tokens": 5},
    {"echo": True, "add_generation_prompt": False},
    {"user": "somebody", "metadata": {"run": "1"}, "service_tier": "auto", "store": False},
    {"a_field_nobody_knows": {"deep": [1, None, True, 1e-7, "é", 12345678901234567890]}},
    {"truncate_prompt_tokens": 24},
    {"chat_template_kwargs": {"unused": True}},
    {"bad_words": ["Paris"]},
    {"stop_token_ids": [2, 30]},
    {"seed": 7, "temperature": 1.5},
]
STRUCTURED: list[dict[str, Any]] = [
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}},
    {"structured_outputs": {"choice": ["Paris", "Röma", "パリ"]}},
    {"structured_outputs": {"regex": "[a-c]{3}"}},
    {"tools": [WEATHER]},
    {"tools": [WEATHER, TIME], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [WEATHER], "tool_choice": "none"},
    {"tools": [WEATHER], "tool_choice": "required"},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
]
COMPLETION_OPTIONS: list[dict[str, Any]] = [
    {},
    {"echo": True},
    {"echo": True, "logprobs": 2},
    {"echo": True, "max_tokens": 1, "logprobs": 1},
    {"logprobs": 0},
    {"logprobs": 5},
    {"n": 2, "temperature": 0.9},
    {"stop": [" the", "\n"]},
    {"return_token_ids": True},
    {"add_special_tokens": False},
    {"min_tokens": 2, "ignore_eos": True},
    {"logit_bias": {"5": 1}, "user": "ü"},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"truncate_prompt_tokens": 8},
]
PROMPTS: list[Any] = [
    "Once upon a time",
    "Größe und Gewicht: ",
    "東京は",
    ["first prompt", "second prompt"],
    [504, 3575, 282],
    [[504, 3575], [282, 260]],
    LONG,
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": []}),
    (CHAT, {}),
    (CHAT, {"messages": "hello"}),
    (CHAT, {"messages": [{"content": "no role"}]}),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": -1}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "n": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "top_p": 3}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "n": 0}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1000}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER], "tool_choice": "sometimes"}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "yaml"}}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"regex": "("}}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"99999999": 1}}),
    (CHAT, {"messages": [{"role": "user", "content": LONG * 3}], "max_tokens": 4}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 100_000}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "n": 2, "stream": True}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"prompt": ""}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": {"text": "x"}}),
    (COMPLETIONS, {"prompt": [10_000_000]}),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}),
    (COMPLETIONS, {"prompt": "x", "logprobs": 1000}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}),
    (COMPLETIONS, {"prompt": "x", "stop": 7}),
    (COMPLETIONS, {"prompt": LONG * 3, "stream": True}),
    (RESPONSES, {}),
    (RESPONSES, {"input": "x", "max_output_tokens": -4}),
    (RESPONSES, {"input": "x", "temperature": 9}),
    (MESSAGES, {"messages": [{"role": "user", "content": "x"}]}),
    (MESSAGES, {"messages": [{"role": "nobody", "content": "x"}], "max_tokens": 4}),
    (MESSAGES, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000}),
    ("/tokenize", {}),
    ("/tokenize", {"prompt": ["a list"]}),
    ("/detokenize", {"tokens": ["x"]}),
    ("/detokenize", {"tokens": [-1]}),
]


EMBEDDING_OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoding_format": "float"},
    {"encoding_format": "base64"},
    {"encoding_format": "base64", "embed_dtype": "float16", "endianness": "big"},
    {"encoding_format": "bytes"},
    {"truncate_prompt_tokens": 2},
    {"add_special_tokens": False, "user": "ü"},
    {"use_activation": False},
    {"a_field_nobody_knows": {"deep": [1, None, True, 1e-7, "é"]}},
]
SCORE_OPTIONS: list[dict[str, Any]] = [{}, {"truncate_prompt_tokens": 3}, {"user": "ü"}, {"a_field_nobody_knows": [1e-7]}]
REFUSED_VECTORS: list[tuple[str, dict[str, Any]]] = [
    (EMBEDDINGS, {}),
    (EMBEDDINGS, {"input": None}),
    (EMBEDDINGS, {"input": {"text": "x"}}),
    (EMBEDDINGS, {"input": []}),
    (EMBEDDINGS, {"input": ["x", 5]}),
    (EMBEDDINGS, {"input": [10_000_000]}),
    (EMBEDDINGS, {"input": "x", "dimensions": 7}),
    (EMBEDDINGS, {"input": "x", "encoding_format": "yaml"}),
    (EMBEDDINGS, {"input": "x", "embed_dtype": "float3"}),
    (EMBEDDINGS, {"input": "x", "truncate_prompt_tokens": 100_000}),
    (EMBEDDINGS, {"input": LONG}),
    (EMBEDDINGS, {"input": ["x", LONG]}),
    (EMBEDDINGS, {"messages": []}),
    (EMBEDDINGS, {"messages": [{"role": "user", "content": [IMAGE]}]}),
    (SCORE, {}),
    (SCORE, {"text_1": "x"}),
    (SCORE, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}),
    (SCORE, {"text_1": "x", "text_2": LONG}),
    (SCORE, {"text_1": "x", "text_2": []}),
    (RERANK, {}),
    (RERANK, {"query": "x"}),
    (RERANK, {"query": "x", "documents": "y", "top_n": "many"}),
    (RERANK, {"query": "x", "documents": []}),
    (RERANK, {"query": LONG, "documents": ["x"]}),
    ("/tokenize", {}),
    ("/detokenize", {"tokens": [-1]}),
]


def _conversation(rng: random.Random) -> list[dict[str, Any]]:
    text = rng.choice(TEXTS)
    shape = rng.randrange(6)
    if shape == 0:
        return [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": text}]
    if shape == 1:
        earlier = [{"role": "user", "content": rng.choice(TEXTS)}, {"role": "assistant", "content": "Yes."}]
        return [*earlier, {"role": "user", "content": text}]
    if shape == 2:
        return [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": "Why?"}]}]
    return [{"role": "user", "content": text, **({"name": "anna"} if shape == 3 else {})}]


def _tool_conversation() -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
    return [
        {"role": "user", "content": "The weather in Köln?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain, 12 °C"},
    ]


def _streaming(rng: random.Random) -> dict[str, Any]:
    every_event = {"include_usage": True, "continuous_usage_stats": True}
    usage = rng.choice([None, {"include_usage": True}, every_event, {"include_usage": False}])
    return {"stream": True} if usage is None else {"stream": True, "stream_options": usage}


def _chat(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    base = {"temperature": 0, "seed": 1, "max_tokens": 4}
    for stream in (False, True):
        for options in CHAT_OPTIONS:
            body = {**base, "messages": _conversation(rng), **options}
            yield CHAT, {**body, **_streaming(rng)} if stream else body
    yield CHAT, {**base, "messages": [{"role": "user", "content": LONG}]}
    yield CHAT, {**base, "messages": _conversation(rng), "prompt_logprobs": 1}
    last = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    yield CHAT, {**base, "messages": last, "add_generation_prompt": False, "continue_final_message": True}


def _structured(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    base = {"temperature": 0, "seed": 1, "max_tokens": 8}
    for stream in (False, True):
        for options in STRUCTURED:
            body = {**base, "messages": _conversation(rng), **options}
            yield CHAT, {**body, **_streaming(rng)} if stream else body
        yield CHAT, {**base, "messages": _tool_conversation(), "tools": [WEATHER], "stream": stream}


def _completions(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    base = {"temperature": 0, "seed": 1, "max_tokens": 4}
    for stream in (False, True):
        for options in COMPLETION_OPTIONS:
            body = {**base, "prompt": rng.choice(PROMPTS[:-1]), **options}
            yield COMPLETIONS, {**body, **_streaming(rng)} if stream else body
        for prompt in PROMPTS:
            yield COMPLETIONS, {**base, "prompt": prompt, "stream": stream}


def _tokens(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    for text in [*TEXTS, LONG, ""]:
        yield "/tokenize", {"prompt": text, "add_special_tokens": rng.random() < 0.5, "return_token_strs": rng.random() < 0.5}
        yield "/tokenize", {"messages": [{"role": "user", "content": text}], "add_generation_prompt": rng.random() < 0.5}
    for count in (0, 1, 5, 200):
        yield "/detokenize", {"tokens": [rng.randrange(40_000) for _ in range(count)]}


def _other_dialects(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    tool = {"name": "get_weather", "input_schema": SCHEMA}
    for stream in (False, True):
        for text in rng.sample(TEXTS, 4):
            turns = [{"role": "user", "content": text}]
            extra = rng.choice([{}, {"system": "Be brief."}, {"stop_sequences": ["."]}, {"top_k": 5}, {"tools": [tool]}])
            yield MESSAGES, {"max_tokens": 4, "temperature": 0, "messages": turns, "stream": stream, **extra}
            more = rng.choice([{}, {"instructions": "Be brief."}, {"top_p": 0.9}, {"metadata": {"a": "ü"}}])
            given = rng.choice([text, [{"role": "user", "content": text}]])
            yield RESPONSES, {"max_output_tokens": 4, "temperature": 0, "input": given, "stream": stream, **more}
    for text in TEXTS[:4]:
        yield "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": text}], "system": "Be brief."}


def _refused(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from REFUSED


def _embeddings(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    for options in EMBEDDING_OPTIONS:
        yield EMBEDDINGS, {"input": rng.choice(TEXTS), **options}
        yield EMBEDDINGS, {"input": rng.sample(TEXTS, 3), **options}
    for given in (*TEXTS, LONG[:1000], [504, 3575, 282], [[504, 3575], [282]], TEXTS * 3):
        yield EMBEDDINGS, {"input": given}
    for messages in ([{"role": "user", "content": text}] for text in TEXTS[:3]):
        yield EMBEDDINGS, {"messages": messages, "add_generation_prompt": rng.random() < 0.5}
    for text in TEXTS[:4]:
        yield "/tokenize", {"prompt": text}
    yield "/detokenize", {"tokens": [504, 3575, 282]}


def _scores(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    for options in SCORE_OPTIONS:
        first, *others = rng.sample(TEXTS, 4)
        yield SCORE, {"text_1": first, "text_2": others[0], **options}
        yield SCORE, {"text_1": first, "text_2": others, **options}
        yield SCORE, {"text_1": [first, others[0]], "text_2": others[1:], **options}
        yield SCORE, {"queries": first, "documents": others, **options}
        yield RERANK, {"query": first, "documents": others, **options}
        yield RERANK, {"query": first, "documents": others, "top_n": rng.randint(1, 5), **options}
    yield RERANK, {"query": "a", "documents": TEXTS * 4}


def _refused_vectors(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from REFUSED_VECTORS


FAMILIES: dict[str, Callable[[random.Random], Iterator[tuple[str, dict[str, Any]]]]] = {
    "chat": _chat,
    "structured": _structured,
    "completions": _completions,
    "tokens": _tokens,
    "other dialects": _other_dialects,
    "refused": _refused,
}


POOLING: dict[str, Callable[[random.Random], Iterator[tuple[str, dict[str, Any]]]]] = {
    "embeddings": _embeddings,
    "scores": _scores,
    "refused vectors": _refused_vectors,
}
"""What an engine that makes vectors is asked, in place of `FAMILIES`."""


def cases(family: str, seed: int = SEED) -> list[Case]:
    """The requests of one family, the same for the same seed."""
    rng = random.Random(f"{family}-{seed}")
    requests = (FAMILIES | POOLING)[family](rng)
    return [Case(path, body, rng.choice(ROUTED_NAMES), rng.random() < 0.5) for path, body in requests]
