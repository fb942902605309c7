"""What routers say to each other directly: the letter, its seal, and which sealed datagrams are believed.

A forged or repeated notice could steer where requests go (never where they may go: that is screened before loads are looked at).
So each datagram is sealed with AES-256-GCM (NIST SP 800-38D) under a key that follows from the cluster secret and from a session
that its sender drew when it started; the counter in it is the nonce, and a window over the counters (RFC 4303, 3.4.3) drops what
was seen before. What was recorded of an earlier session proves nothing: a session is believed once it has named ours, which did
not exist then.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator, Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from router.placement.peers import Notice, Open
from router.placement.targets import Work

MOST_BYTES = 1200
"""Of a letter. With seal and UDP header it fits one packet on every network that carries IPv6 (RFC 8200: 1,280 bytes)."""
_SESSION_BYTES = 12
_HEADER_BYTES = _SESSION_BYTES + 8
_NONCE_PADDING = bytes(4)
_WINDOW = 64
"""Datagrams that may overtake one and leave it worth reading."""
_MOST_SESSIONS = 1024
_ENDLESS_S = 1e9


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """What one router tells another at once.

    `sessions` are those the sender has heard of; `rolls`, now and then, are its requests in flight. `asked` names a router that
    is to tell again of its requests `wanted`.
    """

    router: str
    notices: Sequence[Notice] = ()
    sessions: Sequence[bytes] = ()
    rolls: Sequence[Open] = ()
    asked: str = ""
    wanted: Sequence[int] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Letter)


def write_letters(router: str, notices: Sequence[Notice]) -> Iterator[bytes]:
    """News as letters of `MOST_BYTES` at most each, as few as it takes; none for no news."""
    if not notices:
        return
    letter = _encoder.encode(Letter(router, notices))
    if len(letter) <= MOST_BYTES or len(notices) == 1:
        yield letter
        return
    size = -(-len(notices) // (len(letter) // MOST_BYTES + 1))
    for start in range(0, len(notices), size):
        yield from write_letters(router, notices[start : start + size])


def write_letter(letter: Letter) -> bytes:
    """Any letter, as `read_letter` reads it."""
    return _encoder.encode(letter)


def read_letter(data: bytes) -> Letter:
    """What a peer wrote.

    Raises:
        msgspec.MsgspecError: it is no letter, or tells of work in numbers that books cannot be kept in.
    """
    letter = _decoder.decode(data)
    for notice in letter.notices:
        if notice.work is not None and not _can_be_booked(notice.work):
            raise msgspec.ValidationError("work in impossible numbers")
    return letter


def _can_be_booked(work: Work) -> bool:
    """Whether books can be kept in these numbers; sums that hold one that is not finite never get rid of it."""
    return (
        0.0 <= work.prefill_s < _ENDLESS_S
        and 0.0 < work.tau_s < _ENDLESS_S
        and work.prompt_tokens >= 0
        and work.cached_tokens >= 0
        and work.output_tokens >= 0
    )


class Unbelievable(Exception):
    """A datagram that proves nothing: not sealed by a router of this cluster, damaged, or seen before."""


class Session:
    """What is known of one session of a peer."""

    __slots__ = ("believed", "cipher", "highest", "name", "seen")

    def __init__(self, name: bytes, cipher: AESGCM) -> None:
        self.name = name
        self.cipher = cipher
        self.believed = False
        """Whether it has named our session: only then is it one that lives now."""
        self.highest = -1
        self.seen = 0
        """Bit i: the datagram `highest - i` has come."""

    def is_new(self, number: int) -> bool:
        """Whether a datagram has not come before, as far as that is remembered; what is too old counts as seen."""
        behind = self.highest - number
        return behind < 0 or (behind < _WINDOW and not self.seen >> behind & 1)

    def take(self, number: int) -> None:
        """It has come now."""
        ahead = number - self.highest
        if ahead > 0:
            self.seen = (self.seen << min(ahead, _WINDOW) | 1) & (1 << _WINDOW) - 1
            self.highest = number
        else:
            self.seen |= 1 << -ahead


class Seals:
    """Closes our letters and opens those of others.

    Args:
        secret: the cluster secret.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.session = secrets.token_bytes(_SESSION_BYTES)
        self._cipher = self._cipher_of(self.session)
        self._count = 0
        self._sessions: dict[bytes, Session] = {}

    def __repr__(self) -> str:
        return "Seals(...)"

    def _cipher_of(self, session: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._secret, b"peer news\0" + session, "sha256"))

    def close(self, letter: bytes) -> bytes:
        """A sealed datagram."""
        header = self.session + self._count.to_bytes(8, "big")
        self._count += 1
        return header + self._cipher.encrypt(_NONCE_PADDING + header[_SESSION_BYTES:], letter, header)

    def open(self, datagram: bytes) -> tuple[Session, Letter]:
        """Whose a datagram is and what it says. Its notices count only where the session is believed.

        Raises:
            Unbelievable: it proves nothing.
        """
        header = datagram[:_HEADER_BYTES]
        name = header[:_SESSION_BYTES]
        if len(header) < _HEADER_BYTES or name == self.session:
            raise Unbelievable
        number = int.from_bytes(header[_SESSION_BYTES:], "big")
        session = self._sessions.get(name) or Session(name, self._cipher_of(name))
        if not session.is_new(number):
            raise Unbelievable
        try:
            text = session.cipher.decrypt(_NONCE_PADDING + header[_SESSION_BYTES:], datagram[_HEADER_BYTES:], header)
            letter = read_letter(text)
        except (InvalidTag, msgspec.MsgspecError):
            raise Unbelievable from None
        session.take(number)
        if name not in self._sessions:
            self._remember(session)
        session.believed = session.believed or self.session in letter.sessions
        return session, letter

    def _remember(self, session: Session) -> None:
        """Sessions that were believed once are kept for good: what was recorded of them must stay seen."""
        self._sessions[session.name] = session
        if len(self._sessions) > _MOST_SESSIONS:
            oldest = next((name for name, kept in self._sessions.items() if not kept.believed), None)
            if oldest is not None:
                del self._sessions[oldest]
