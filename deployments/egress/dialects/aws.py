"""What Amazon needs of its own: signatures (SigV4) and the binary framing of its event streams."""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import msgspec

MAX_FRAME = 16 * 1024 * 1024
_PRELUDE = struct.Struct(">III")
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Header value types of a fixed width; 6 (bytes) and 7 (string) carry their own length."""


class AwsKey(msgspec.Struct, frozen=True):
    """An access key; `token` only for temporary ones. Never printed."""

    access: str
    secret: str
    token: str = ""

    def __repr__(self) -> str:
        return "AwsKey(...)"


def read_key(credential: str) -> AwsKey | None:
    """`ACCESS:SECRET[:TOKEN]` as a key; None for a Bedrock API key, which is sent as it is."""
    access, colon, rest = credential.partition(":")
    if not colon:
        return None
    secret, _, token = rest.partition(":")
    return AwsKey(access, secret, token)


def sign(
    key: AwsKey, method: str, url: str, headers: dict[str, str], body: bytes, region: str, service: str, now: float
) -> dict[str, str]:
    """The headers of a signed request (AWS Signature Version 4).

    Args:
        key: whose signature.
        method: the HTTP method.
        url: the whole URL, its path percent-encoded once, as it is sent.
        headers: those to sign beside `host` and the date; names in lower case.
        body: the payload.
        region: e.g. `eu-central-1`.
        service: e.g. `bedrock`.
        now: UNIX time in seconds.

    Returns:
        `authorization`, `x-amz-date`, and `x-amz-security-token` for a temporary key.
    """
    moment = datetime.fromtimestamp(now, UTC)
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    parts = urlsplit(url)
    signed = {**headers, "host": parts.netloc, "x-amz-date": stamp}
    if key.token:
        signed["x-amz-security-token"] = key.token
    names = sorted(signed)
    query = "&".join(sorted(parts.query.split("&"))) if parts.query else ""
    canonical = "\n".join(
        (
            method,
            # Every service but S3 wants the encoded path encoded once more.
            quote(parts.path or "/", safe="/-_.~"),
            query,
            *(f"{name}:{' '.join(signed[name].split())}" for name in names),
            "",
            ";".join(names),
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{day}/{region}/{service}/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    derived = b"AWS4" + key.secret.encode()
    for part in (day, region, service, "aws4_request"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    signature = hmac.digest(derived, to_sign.encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={key.access}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    out = {"authorization": authorization, "x-amz-date": stamp}
    if key.token:
        out["x-amz-security-token"] = key.token
    return out


class BadFrame(Exception):
    """What came is no event stream, or a checksum is wrong."""


class Frame(msgspec.Struct, frozen=True):
    """One message: its string headers and its payload."""

    headers: dict[str, str]
    payload: bytes


class FrameReader:
    """Messages of `application/vnd.amazon.eventstream` from pieces that are cut anywhere."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    @property
    def pending(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._pending)

    def feed(self, piece: bytes) -> list[Frame]:
        """The messages that are complete.

        Raises:
            BadFrame: lengths or checksums are wrong.
        """
        data = self._pending + piece
        frames = []
        while len(data) >= _PRELUDE.size:
            total, headers, check = _PRELUDE.unpack_from(data)
            if zlib.crc32(data[:8]) != check or not 16 + headers <= total <= MAX_FRAME:
                raise BadFrame
            if len(data) < total:
                break
            if zlib.crc32(data[: total - 4]) != int.from_bytes(data[total - 4 : total], "big"):
                raise BadFrame
            frames.append(Frame(dict(_headers(data[12 : 12 + headers])), data[12 + headers : total - 4]))
            data = data[total:]
        self._pending = data
        return frames


def _headers(block: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    try:
        while at < len(block):
            size = block[at]
            name = block[at + 1 : at + 1 + size].decode()
            kind = block[at + 1 + size]
            at += 2 + size
            if kind in _FIXED:
                at += _FIXED[kind]
                continue
            if kind not in (6, 7):
                raise BadFrame
            width = int.from_bytes(block[at : at + 2], "big")
            value = block[at + 2 : at + 2 + width]
            at += 2 + width
            if kind == 7:
                yield name, value.decode()
    except (IndexError, UnicodeDecodeError):
        raise BadFrame from None
    if at != len(block):
        raise BadFrame


def write_frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message; what a provider sends, for tests and fakes."""
    block = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value.encode()).to_bytes(2, "big") + value.encode()
        for name, value in headers.items()
    )
    lengths = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    head = lengths + zlib.crc32(lengths).to_bytes(4, "big") + block + payload
    return head + zlib.crc32(head).to_bytes(4, "big")
