"""Reading logs: one log's entries and hashes at the size its journal gives, and several logs merged by time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from router.ledger import records
from router.ledger.journal import Segment, read_journal
from router.ledger.merkle import leaf_hash, root_of
from router.ledger.records import Record
from router.ledger.tiles import WIDTH, TileError, TileReader, pack_entries, tile_path


class LogReader:
    """A log as it stands on disk, also while a process appends to it.

    Args:
        root: the log's directory.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.segments: list[Segment] = read_journal(root)
        frames = [frame for segment in self.segments for frame in segment.frames]
        self.base = frames[0].first if frames else 0
        self.size = frames[-1].end if frames else 0
        self.journal = {frame.first + i: entry for frame in frames for i, entry in enumerate(frame.entries)}
        """The entries that the journal holds, by index."""
        self.tiles = TileReader(self._read, self.size)

    def _read(self, path: str) -> bytes | None:
        """A tile: from its file, or made from the journal where the file is not written yet."""
        level, index = parse_path(path)
        start, end = index * WIDTH, min(self.size, (index + 1) * WIDTH)
        if level in ("entries", "0") and all(n in self.journal for n in range(start, end)):
            entries = [self.journal[n] for n in range(start, end)]
            return pack_entries(entries) if level == "entries" else b"".join(leaf_hash(entry) for entry in entries)
        if level not in ("entries", "0") and (not (self.root / path).is_file() or ".p/" in path):
            height = int(level) * 8
            count = min(WIDTH, (self.size >> height) - start)
            below = [self.tiles.hashes(int(level) - 1, start + i) for i in range(count)]
            return b"".join(root_of(hashes) for hashes in below)
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TileError(f"{self.root / path}: it cannot be read: {error.strerror}") from None

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Entries with their indices; those of pruned bundles are left out.

        Raises:
            TileError: a bundle is damaged.
        """
        end = self.size if end is None else min(end, self.size)
        for index in range(start // WIDTH, -(-end // WIDTH)):
            first = index * WIDTH
            for number, entry in enumerate(self.tiles.bundle(index) or (), start=first):
                if start <= number < end:
                    yield number, entry

    def records(self) -> Iterator[Record]:
        """All records that are there.

        Raises:
            TileError, RecordError: the log is damaged; `tidegate audit verify` says where.
        """
        for _, entry in self.entries():
            yield records.decode(entry)

    def blob(self, name: str) -> bytes:
        """What a record refers to.

        Raises:
            TileError: it is not there, or not what was kept.
        """
        try:
            data = (self.root / "blobs" / name).read_bytes()
        except (OSError, ValueError):  # a damaged record's name may be none
            raise TileError(f"{self.root}: the blob {name} is missing") from None
        if sha256(data).hexdigest() != name:
            raise TileError(f"{self.root}: the blob {name} was changed")
        return data


def find_logs(directory: Path) -> list[Path]:
    """The logs in a directory: itself, or those in it."""
    if (directory / "journal").is_dir():
        return [directory]
    return sorted(path.parent for path in directory.glob("*/journal") if path.is_dir()) if directory.is_dir() else []


def merged(logs: list[LogReader]) -> Iterator[tuple[LogReader, Record]]:
    """The records of several logs in the order of their wall clocks."""
    streams = [_keyed(number, log) for number, log in enumerate(logs)]
    for _, _, _, log, record in heapq.merge(*streams, key=lambda item: item[:3]):
        yield log, record


def _keyed(number: int, log: LogReader) -> Iterator[tuple[float, int, int, LogReader, Record]]:
    for record in log.records():
        yield record.t, number, record.n, log, record


def parse_path(path: str) -> tuple[str, int]:
    """Level and index of a tile's path.

    Raises:
        ValueError: it is no path of a tile.
    """
    parts = path.split(".p/")[0].split("/")
    level, index = parts[1], int("".join(part.removeprefix("x") for part in parts[2:]))
    known = level == "entries" or (level.isdecimal() and level == str(int(level)))
    if not known or tile_path(level, index) != "/".join(parts):
        raise ValueError(f"{path} is no path of a tile")
    return level, index
