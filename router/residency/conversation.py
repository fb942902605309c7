"""Recognising a conversation without an id of the client's: keyed hashes of its messages and of their prefixes.

A chat client sends the whole history with every turn, so a follow-up begins with the messages of the request before it. The
hashes are keyed (BLAKE2b, RFC 7693) with a key derived from the cluster secret and bound to the tenant: who reads the store
learns nothing, and two tenants that say the same words do not meet. System prompts are left out, because they are shared between
conversations and often hold the time of day.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from router.placement.targets import Endpoint
from router.wire.json_body import is_one_of

LONG_ENOUGH = 48
"""Bytes from which a message alone identifies a conversation, should its beginning have been trimmed away."""
_DIGEST = 16
_MOST_TOKENS = 131_072
"""Of a prompt of token ids, each of which is a message of its own, so that one who appends some is found again: so many are read.
Prompts that begin alike for that long are of one conversation, however they go on."""
_INSTRUCTIONS = frozenset({"system", "developer"})
_CLIENT = frozenset({"user", "tool", "function", *_INSTRUCTIONS})
_CLIENT_ITEMS = frozenset({"function_call_output", "computer_call_output", "item_reference", "input_text", "input_image"})
_encoder = msgspec.json.Encoder(order="sorted")


class Conversation(msgspec.Struct, frozen=True):
    """The hashes of one request's history.

    `prefixes[i]` stands for the first i+1 messages, `messages` for long messages of the history on their own (not the last
    one, which is new). `answered` is how many messages come before the last answer of a model, which is the whole of the
    previous request; -1 when there is no answer in it.
    """

    prefixes: tuple[bytes, ...]
    messages: tuple[bytes, ...]
    last: bytes
    answered: int

    @property
    def is_continued(self) -> bool:
        """True when a model's answer is in the history: there was a request before this one."""
        return self.answered >= 0


NO_CONVERSATION = Conversation((), (), b"", -1)


def lineage_key(secret: bytes) -> bytes:
    """The key of the hashes, from the cluster secret: every router makes the same ones, nobody else any."""
    return hmac.digest(secret, b"lineage", "sha256")


def read_conversation(key: bytes, tenant: str, endpoint: str, parsed: dict[str, Any]) -> Conversation:
    """The hashes of a parsed request; `NO_CONVERSATION` for endpoints without one.

    Args:
        key: from `lineage_key`.
        tenant: the tenant of the request's key.
        endpoint: one of `Endpoint`.
        parsed: the request's body.
    """
    head = tenant.encode() + b"\0"
    prefixes: list[bytes] = []
    messages: list[bytes] = []
    link, last, answered = head, b"", -1
    asked = parsed.get("prompt") if endpoint == Endpoint.COMPLETIONS else None
    if type(asked) is list and set(map(type, asked)) == {int}:
        return Conversation(_prefixes_of_tokens(key, link, asked), (), b"", -1)
    for message in _messages(endpoint, parsed):
        content, is_answer = _content(message), _is_answer(message)
        if is_answer:
            answered = len(prefixes)
        if last:
            messages.append(last)
        last = blake2b(head + content, key=key, digest_size=_DIGEST).digest() if len(content) >= LONG_ENOUGH else b""
        link = blake2b(link + content, key=key, digest_size=_DIGEST, person=b"prefix").digest()
        prefixes.append(link)
    return Conversation(tuple(prefixes), tuple(messages), last, answered) if prefixes else NO_CONVERSATION


def _prefixes_of_tokens(key: bytes, link: bytes, tokens: list[int]) -> tuple[bytes, ...]:
    """As for other messages, without what is not asked of a number: there may be a million of them."""
    prefixes: list[bytes] = []
    for token in islice(tokens, _MOST_TOKENS):
        link = blake2b(link + b"%d" % token, key=key, digest_size=_DIGEST, person=b"prefix").digest()
        prefixes.append(link)
    return tuple(prefixes)


def _messages(endpoint: str, parsed: dict[str, Any]) -> Iterator[Any]:
    """The messages in order, without instructions."""
    if endpoint in (Endpoint.CHAT, Endpoint.MESSAGES):
        found = parsed.get("messages")
    elif endpoint == Endpoint.RESPONSES:
        found = parsed.get("input")
    elif endpoint == Endpoint.COMPLETIONS:
        found = parsed.get("prompt")
    else:
        return
    for message in found if isinstance(found, list) else [found]:
        if message is not None and not (isinstance(message, dict) and is_one_of(message.get("role"), _INSTRUCTIONS)):
            yield message


def _is_answer(message: Any) -> bool:
    """Whether a model, not the client, said this. What cannot be told counts as an answer: it asks for a past."""
    if not isinstance(message, dict):
        return False
    role, kind = message.get("role"), message.get("type")
    return not (is_one_of(role, _CLIENT) if role is not None else is_one_of(kind, _CLIENT_ITEMS))


def _content(message: Any) -> bytes:
    """What a message says, whichever of the equivalent shapes a client gives it: text as text, the rest as sorted JSON."""
    if isinstance(message, str):
        return message.strip().encode("utf-8", "surrogatepass")
    if not isinstance(message, dict):
        return _encode(message)
    pieces: list[bytes] = []
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            pieces.append(part.strip().encode("utf-8", "surrogatepass"))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            pieces.append(part["text"].strip().encode("utf-8", "surrogatepass"))
        elif part is not None:
            pieces.append(_encode(part))
    for name in ("tool_calls", "function_call", "arguments", "output", "name"):
        if message.get(name):
            pieces.append(_encode(message[name]))
    return b"\0".join(piece for piece in pieces if piece)


def _encode(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except (msgspec.MsgspecError, OverflowError, ValueError):  # half a character, or a number that no encoder takes
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
