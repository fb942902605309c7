"""Where a log stood when its process ended: read back from journal and tiles, and compared with the last signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from router.ledger.checkpoint import Checkpoint, CheckpointError, Verifier, open_note
from router.ledger.journal import Segment, frame_bytes
from router.ledger.merkle import leaf_hash, root_of
from router.ledger.records import RecordError, blobs_of, check_version, decode
from router.ledger.tiles import WIDTH, RightEdge, TileError, pack_each, split_hashes, tile_path


class LogDamaged(Exception):
    """A log is not what its own signatures say. It is left as it is, for an auditor; the text says what is wrong."""


class Growth:
    """A tree that grows by entries, and the tiles that become full on the way.

    Args:
        edge: the right edge.
        tail: the entries of the bundle that is being filled, each packed.
        full: full tiles by path that nobody has written yet.
    """

    def __init__(self, edge: RightEdge, tail: Sequence[bytes] = (), full: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self.edge = edge
        self.tail = tail
        self.full = dict(full)

    @property
    def size(self) -> int:
        """Entries in the tree."""
        return self.edge.size

    def grown(self, packed: Sequence[bytes], leaves: Sequence[bytes]) -> Growth:
        """The same with more entries (packed, and as leaf hashes); this one stays, for the case that they cannot be written."""
        edge, full, tail = self.edge.copy(), dict(self.full), [*self.tail, *packed]
        for index in range(self.size // WIDTH, (self.size + len(packed)) // WIDTH):
            full[tile_path("entries", index)] = b"".join(tail[:WIDTH])
            del tail[:WIDTH]
        full.update(edge.extend(leaves))
        return Growth(edge, tail, full)


def recover(root: Path, segments: Sequence[Segment], verifier: Verifier) -> tuple[Checkpoint, Growth]:
    """The last signed state of a log and its right edge.

    Tiles that the journal still covers are made again from it; older ones must be there.

    Raises:
        LogDamaged: entries are missing, do not give the root that was signed, or are records of another version.
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
            growth.full.update(growth.edge.extend(_read_full(root, 0, base // WIDTH)))
            entries = entries[WIDTH - base % WIDTH :]
    except (OSError, TileError) as error:
        raise LogDamaged(f"{root}: the journal begins at entry {base}, and a tile before it is missing: {error}") from None
    growth = growth.grown(pack_each(entries), [leaf_hash(entry) for entry in entries])
    if growth.size != last.size or growth.edge.root() != last.root:
        raise LogDamaged(f"{root}: the entries do not give the root that the last checkpoint (size {last.size}) signs")
    try:
        check_version(frames[-1].entries[-1])
    except RecordError as error:
        raise LogDamaged(f"{root}: {error}") from None
    return last, growth


def origin_of_empty(root: Path, verifier: Verifier) -> str:
    """The origin of a log in which nothing stands yet; empty where there is no log.

    Raises:
        LogDamaged: tiles or a checkpoint say that something stood in it.
    """
    try:
        signed = open_note((root / "head").read_bytes(), [verifier])
    except FileNotFoundError:
        signed = None
    except (OSError, CheckpointError) as error:
        raise LogDamaged(f"{root / 'head'}: {error}") from None
    if (root / "tile").exists() or (signed is not None and signed.size):
        raise LogDamaged(f"{root}: there are tiles or a checkpoint, but the journal is gone")
    return "" if signed is None else signed.origin


def without_lost_blobs(root: Path, segments: Sequence[Segment], verifier: Verifier) -> list[Segment]:
    """The journal up to the first append that a power failure left without a blob it refers to.

    Blobs reach the medium before an append counts as durable, so nobody was told that such an append is. What the head signs was.
    """
    kept = list(segments)
    try:
        signed = open_note((root / "head").read_bytes(), [verifier]).size
    except (OSError, CheckpointError):
        return kept
    for number, frame in enumerate(kept[-1].frames if kept else ()):
        if frame.end > signed and not all(_has_blobs(root, entry) for entry in frame.entries):
            last = kept[-1]
            lost = sum(map(frame_bytes, last.frames[number:]))
            kept[-1] = Segment(last.path, last.frames[:number], last.good_bytes - lost, last.torn_bytes + lost)
            break
    return kept


def _has_blobs(root: Path, entry: bytes) -> bool:
    try:
        return all(sha256((root / "blobs" / name).read_bytes()).hexdigest() == name for name in blobs_of(decode(entry)))
    except OSError:
        return False
    except (RecordError, KeyError, TypeError):
        return True


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
