"""What the agent beside an engine tells a router: frames of a length (4 bytes, big-endian) and a MessagePack message.

Hashes travel as packed 64-bit integers. No message holds a token id or a byte of anybody's prompt; the chat template and the
names of special tokens are the model's, not a client's.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

import msgspec

KV_PATH = "/tidegate/kv"
"""The path a pass for the agent's port is issued for (method GET)."""
LONGEST_FRAME = 8 * 1024 * 1024
CHUNKS_PER_FRAME = 65_536
BEAT_S = 1.0


class TextProfile(msgspec.Struct, frozen=True):
    """How one engine turns a request into prompt text, as far as that can be done elsewhere.

    `templates` maps `default` (and `tool_use`, where there is one) to a chat template; it is empty when the engine renders chats
    in a way of its own. `completion_prefix` is the text of the tokens put before a plain prompt. `problem` says why texts of this
    engine cannot be told exactly ("" when they can).
    """

    templates: dict[str, str] = {}
    special_tokens: dict[str, str] = {}
    content_format: str = "string"
    template_arguments: dict[str, object] = {}
    hide_tools_when_none: bool = False
    completion_prefix: bytes = b""
    compose: str = ""
    """Unicode normalisation form the tokenizer applies first ("NFC" or "")."""
    problem: str = ""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message. `block_tokens` is 0 as long as no block was seen."""

    profile: TextProfile
    block_tokens: int = 0


class Chunks(msgspec.Struct, frozen=True, tag="chunks", gc=False):
    """What changed. With `reset` everything said before is void, and the whole table follows up to the next `Beat`."""

    stored: bytes = b""
    removed: bytes = b""
    reset: bool = False


class Beat(msgspec.Struct, frozen=True, tag="beat", gc=False):
    """Every second. `proof_age_s`: how long ago the engine itself confirmed that no event is missing; -1: never.

    `complete`: every block in the cache is one whose beginning the agent has seen. `note` says in words what limits the table.
    """

    proof_age_s: float
    complete: bool
    blocks: int = 0
    block_tokens: int = 0
    note: str = ""


Message = Hello | Chunks | Beat
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode_frame(message: Message) -> bytes:
    """One frame, length and all."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(4, "big") + body


def decode_message(body: bytes) -> Message:
    """The message in a frame's body.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    message: Message = _DECODER.decode(body)
    return message


def pack_hashes(hashes: Iterable[int]) -> bytes:
    """64-bit hashes, little-endian."""
    packed = array("Q", hashes)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_hashes(data: bytes) -> list[int]:
    """Read what `pack_hashes` wrote.

    Raises:
        ValueError: the length is not a multiple of 8.
    """
    packed = array("Q")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
