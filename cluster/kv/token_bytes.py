"""The text of each token id, as bytes, and whether that is exact: read once from a model's `tokenizer.json`.

A block of tokens may end in the middle of a character, so tokens are turned into bytes one by one and not with the tokenizer's
`decode`. Two families of decoders are known: byte-level BPE (GPT-2, Llama 3, Qwen, ...) and SentencePiece-like BPE with byte
fallback (Gemma, Llama 2, ...). Whatever they are, they are tried: `encode`, then bytes, has to give the text back.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_SPACE = "\u2581"
_PROBES = (
    "Hello, world! What is the capital of France?",
    " leading, trailing  and   several    spaces ",
    "line\nbreaks\r\n\r\nand\ttabs\t\t.\n\n\n",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": None}  # code\n",
    "Grüße, naïve café, Ελληνικά, Русский, العربية, हिन्दी, 日本語, 한국어, ไทย",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 and \u00a0 \u2003 \ufeff \u0000 \u0301",
    '{"type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}',
    "<tool_call>\n<|x|>[INST] <<SYS>> </s> ... 1234567890 $%^&*()_+-=~`",
)


class TokenBytes(msgspec.Struct, frozen=True):
    """What is known of a tokenizer. `problem` says why its texts cannot be told exactly ("" when they can).

    `table[i]` is the text of token `i`; `prefix` that of the tokens put before a plain prompt; `compose` the Unicode form the
    tokenizer brings text into first.
    """

    table: tuple[bytes, ...]
    prefix: bytes = b""
    compose: str = ""
    problem: str = ""


def read_token_bytes(tokenizer_json: Path) -> TokenBytes:
    """Read a `tokenizer.json` and try it out.

    Returns:
        `problem` is set where the file is missing, of an unknown kind, or does not give texts back.
    """
    from tokenizers import Tokenizer  # a large library, and only the agent needs it

    try:
        source = tokenizer_json.read_bytes()
        spec = msgspec.json.decode(source)
        tokenizer = Tokenizer.from_str(source.decode("utf-8"))
    except Exception as error:  # `tokenizers` raises plain Exception
        return TokenBytes((), problem=f"the tokenizer cannot be read ({type(error).__name__})")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    table = _table(tokenizer, spec)
    if table is None:
        return TokenBytes((), problem="the tokenizer's decoder is of an unknown kind")
    compose = "NFC" if "NFC" in _types(spec.get("normalizer")) else ""
    prefix = _prefix(tokenizer, table)
    if prefix is None:
        return TokenBytes(table, compose=compose, problem="the tokenizer puts something unknown around a prompt")
    for probe in _probes(tokenizer):
        expected = unicodedata.normalize("NFC", probe) if compose else probe
        if text_of(table, tokenizer.encode(probe, add_special_tokens=False).ids) != expected.encode():
            return TokenBytes(table, prefix, compose, "the tokenizer does not give texts back exactly")
    return TokenBytes(table, prefix, compose)


def text_of(table: tuple[bytes, ...], ids: Iterable[int]) -> bytes:
    """The bytes a sequence of tokens stands for.

    Raises:
        IndexError: an id is none of this tokenizer's.
    """
    return b"".join([table[i] for i in ids])


def _probes(tokenizer: Any) -> Iterator[str]:
    yield from _PROBES
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    yield from (f"{token}user\nHi{token}\n{token}" for token in added[:8])
    chance = random.Random(0)
    for _ in range(24):
        parts = [chance.choice(_PROBES) for _ in range(4)]
        yield "".join(part[chance.randrange(len(part)) :] for part in parts)


def _table(tokenizer: Any, spec: dict[str, Any]) -> tuple[bytes, ...] | None:
    kinds = _types(spec.get("decoder"))
    if "ByteLevel" in kinds:
        text = _byte_level
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        text = _sentence_piece
    else:
        return None
    added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
    size = max([*added, *tokenizer.get_vocab(with_added_tokens=True).values()], default=-1) + 1
    table = [b""] * size
    for number in range(size):
        content = added.get(number)
        token = tokenizer.id_to_token(number)
        if content is not None:
            table[number] = content.encode()
        elif token is not None:
            table[number] = text(token)
    return tuple(table)


def _types(part: Any) -> set[str]:
    """The types of a normalizer or decoder, and of everything inside it."""
    if not isinstance(part, dict):
        return set()
    found = {str(part.get("type"))}
    for inner in [*part.get("decoders", ()), *part.get("normalizers", ())]:
        found |= _types(inner)
    return found


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for the 256 bytes in byte-level BPE (Radford et al., 2019: GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    alphabet = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    found = _BYTE_TOKEN.match(token)
    return bytes([int(found[1], 16)]) if found else token.replace(_SPACE, " ").encode()


def _prefix(tokenizer: Any, table: tuple[bytes, ...]) -> bytes | None:
    """The text of the tokens before a plain prompt; None when there is something behind it as well."""
    plain = tokenizer.encode("abc", add_special_tokens=False).ids
    full = tokenizer.encode("abc", add_special_tokens=True).ids
    before = len(full) - len(plain)
    return text_of(table, full[:before]) if full[before:] == plain else None
