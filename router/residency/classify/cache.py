"""What was found in a text before, by a keyed hash of it: a conversation's old turns are scanned once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import msgspec

from router.residency.classify.kinds import Kind


class Outcome(msgspec.Struct, frozen=True):
    """The kinds found in a text, and why the answer cannot be relied on, if so."""

    kinds: frozenset[Kind] = frozenset()
    unknown: str = ""


class OutcomeCache:
    """The latest outcomes; bounded, in memory only. A digest without the key tells nothing about the text.

    Args:
        key: any secret, 16 bytes or more.
        entries: how many are kept; about 250 bytes each.
    """

    __slots__ = ("_entries", "_kept", "_key")

    def __init__(self, key: bytes, entries: int = 65_536) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"tidegate-classif").digest()
        self._entries = entries
        self._kept: OrderedDict[bytes, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def digest(self, text: str) -> bytes:
        """The keyed hash a text is kept under; 1 us for each kB."""
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20, key=self._key).digest()

    def get(self, digest: bytes) -> Outcome | None:
        """What is known of a text."""
        known = self._kept.get(digest)
        if known is not None:
            self._kept.move_to_end(digest)
        return known

    def put(self, digest: bytes, outcome: Outcome) -> None:
        """Remember; a timeout is not remembered: the detector may be back."""
        if outcome.unknown == "timeout":
            return
        self._kept[digest] = outcome
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)
