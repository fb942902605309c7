"""The write-ahead journal: frames of entries, each frame closed by a signed checkpoint of the log with it.

A frame is complete or it is not there: what a crash left of one is recognised by its checksum and cut off. Because every
frame carries a signature, no part of a log is ever unsigned, not even the last hundred milliseconds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from router.ledger.tiles import TileError, pack_each, unpack_entries

_MAGIC = b"TGJ1"
_HEAD = struct.Struct(">4sQIII")
_TAIL = struct.Struct(">I")
_NAME_DIGITS = 20


class Frame(msgspec.Struct, frozen=True):
    """Entries `first`, `first + 1`, ... and the signed note of the log that ends with them."""

    first: int
    entries: tuple[bytes, ...]
    note: bytes

    @property
    def end(self) -> int:
        """The size of the log with this frame."""
        return self.first + len(self.entries)


class Segment(msgspec.Struct, frozen=True):
    """One file of the journal: its frames, how many bytes they take, and how many bytes after them are no frame."""

    path: Path
    frames: tuple[Frame, ...]
    good_bytes: int
    torn_bytes: int


def segment_path(root: Path, first: int) -> Path:
    """The file of the segment that begins with entry `first`."""
    return root / "journal" / f"{first:0{_NAME_DIGITS}d}"


def is_segment(name: str) -> bool:
    """Whether a file of the journal may have this name."""
    return len(name) == _NAME_DIGITS and name.isascii() and name.isdigit()


def pack_frame(first: int, entries: Sequence[bytes], note: bytes) -> bytes:
    """A frame as bytes."""
    return bytes(join_frame(first, pack_each(entries), note))


def join_frame(first: int, packed: Sequence[bytes], note: bytes) -> bytearray:
    """A frame of entries that are packed already."""
    head = _HEAD.pack(_MAGIC, first, len(packed), sum(map(len, packed)), len(note))
    frame = bytearray().join((head, *packed, note, bytes(_TAIL.size)))  # one copy: a frame may have hundreds of kilobytes
    with memoryview(frame) as whole, whole[: -_TAIL.size] as data:
        checksum = zlib.crc32(data)
    _TAIL.pack_into(frame, len(frame) - _TAIL.size, checksum)
    return frame


def read_segment(path: Path) -> Segment:
    """Read frames until the first that is not whole.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    frames: list[Frame] = []
    at = 0
    while (found := _read_frame(data, at)) is not None:
        frame, at = found
        if frames and frame.first != frames[-1].end:
            break
        frames.append(frame)
    good = sum(frame_bytes(frame) for frame in frames)
    return Segment(path, tuple(frames), good, len(data) - good)


def read_journal(root: Path) -> list[Segment]:
    """All segments of a log, in order."""
    directory = root / "journal"
    if not directory.is_dir():
        return []
    return [read_segment(path) for path in sorted(directory.iterdir()) if is_segment(path.name)]


def _read_frame(data: bytes, at: int) -> tuple[Frame, int] | None:
    if at + _HEAD.size > len(data):
        return None
    magic, first, count, body_bytes, note_bytes = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + body_bytes + note_bytes
    if magic != _MAGIC or end + _TAIL.size > len(data):
        return None
    if _TAIL.unpack_from(data, end)[0] != zlib.crc32(data[at:end]):
        return None
    body = data[at + _HEAD.size : at + _HEAD.size + body_bytes]
    try:
        entries = tuple(unpack_entries(body))
    except TileError:
        return None
    if len(entries) != count:
        return None
    return Frame(first, entries, data[end - note_bytes : end]), end + _TAIL.size


def frame_bytes(frame: Frame) -> int:
    """The size of a frame in the journal."""
    return _HEAD.size + sum(2 + len(entry) for entry in frame.entries) + len(frame.note) + _TAIL.size
