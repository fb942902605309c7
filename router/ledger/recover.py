"""Where a log stood when its process ended: read back from journal and tiles, and compared with the last signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from router.ledger.checkpoint import Checkpoint, CheckpointError, Verifier, open_note
from router.ledger.journal import Segment
from router.ledger.merkle import leaf_hash, root_of
from router.ledger.tiles import WIDTH, RightEdge, TileError, pack_entries, split_hashes, tile_path


class LogDamaged(Exception):
    """A log is not what its own signatures say. It is left as it is, for an auditor; the text says what is wrong."""


class Growth:
    """A tree that grows by entries, and the tiles that become full on the way.

    Args:
        edge: the right edge.
        tail: the entries of the bundle that is being filled.
    """

    def __init__(self, edge: RightEdge, tail: Sequence[bytes] = ()) -> None:
        self.edge = edge
        self.tail = list(tail)
        self.full: dict[str, bytes] = {}
        """Full tiles by path that nobody has written yet."""

    @property
    def size(self) -> int:
        """Entries in the tree."""
        return self.edge.frontier.size

    def take(self, entries: Sequence[bytes], leaves: Sequence[bytes]) -> None:
        """Add entries with their leaf hashes."""
        for entry, leaf in zip(entries, leaves, strict=True):
            self.tail.append(entry)
            if len(self.tail) == WIDTH:
                self.full[tile_path("entries", self.size // WIDTH)] = pack_entries(self.tail)
                self.tail.clear()
            for path, data in self.edge.append(leaf):
                self.full[path] = data


def recover(root: Path, segments: Sequence[Segment], verifier: Verifier) -> tuple[Checkpoint, Growth]:
    """The last signed state of a log and its right edge.

    Tiles that the journal still covers are made again from it; older ones must be there.

    Raises:
        LogDamaged: entries are missing, or do not give the root that was signed.
    """
    frames = [frame for segment in segments for frame in segment.frames]
    _check_order(root, segments)
    try:
        last = open_note(frames[-1].note, [verifier])
    except CheckpointError as error:
        raise LogDamaged(f"{root}: {error} (was another signing key in use?)") from None
    for name in ("head", "checkpoint"):
        _check_signed(root / name, verifier, last)
    base = frames[0].first
    entries = [entry for frame in frames for entry in frame.entries]
    try:
        growth = Growth(_read_edge(root, base // WIDTH))
        if base % WIDTH:  # a segment is only removed when the bundle it ends in is full: that bundle's hashes are in its tile
            for leaf in _read_full(root, 0, base // WIDTH):
                growth.full.update(growth.edge.append(leaf))
            entries = entries[WIDTH - base % WIDTH :]
    except (OSError, TileError) as error:
        raise LogDamaged(f"{root}: the journal begins at entry {base}, and a tile before it is missing: {error}") from None
    growth.take(entries, [leaf_hash(entry) for entry in entries])
    if growth.size != last.size or growth.edge.frontier.root() != last.root:
        raise LogDamaged(f"{root}: the entries do not give the root that the last checkpoint (size {last.size}) signs")
    return last, growth


def _check_order(root: Path, segments: Sequence[Segment]) -> None:
    """Only the last segment may end in a torn frame, and each begins where the one before ends."""
    end: int | None = None
    for number, segment in enumerate(segments):
        if segment.torn_bytes and number < len(segments) - 1:
            raise LogDamaged(f"{segment.path}: the journal is damaged at byte {segment.good_bytes}")
        first = segment.frames[0].first if segment.frames else int(segment.path.name)
        if end is not None and first != end:
            raise LogDamaged(f"{root}: the journal lacks the entries {end} to {first - 1}")
        end = segment.frames[-1].end if segment.frames else first


def _check_signed(path: Path, verifier: Verifier, last: Checkpoint) -> None:
    """A head may be older than the journal (a crash came in between), but never newer, and never another log's."""
    try:
        signed = open_note(path.read_bytes(), [verifier])
    except FileNotFoundError:
        return
    except (OSError, CheckpointError) as error:
        raise LogDamaged(f"{path}: {error}") from None
    if signed.origin != last.origin:
        raise LogDamaged(f"{path}: it belongs to the log {signed.origin}, and the journal to {last.origin}")
    if signed.size > last.size:
        raise LogDamaged(f"{path}: it signs {signed.size} entries, but only {last.size} are there")


def _read_edge(root: Path, bundles: int) -> RightEdge:
    """The right edge of a log of so many full bundles."""
    levels: list[list[bytes]] = [[]]
    full = [bundles]
    while count := full[-1]:
        start = count - count % WIDTH
        levels.append([root_of(_read_full(root, len(levels) - 1, index)) for index in range(start, count)])
        full.append(count // WIDTH)
    return RightEdge(levels, full)


def _read_full(root: Path, level: int, index: int) -> list[bytes]:
    """A full hash tile; one that a power failure took is made again from those below it."""
    path = tile_path(level, index)
    try:
        hashes = split_hashes((root / path).read_bytes())
        if len(hashes) == WIDTH:
            return hashes
    except (FileNotFoundError, TileError):
        pass
    if level == 0:
        raise TileError(f"{path} is missing or not full")
    return [root_of(_read_full(root, level - 1, index * WIDTH + child)) for child in range(WIDTH)]
