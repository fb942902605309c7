"""Checking a log offline: every byte of every file in it must follow from its entries and a trusted key.

What is found: entries edited, deleted, inserted or reordered, tiles or blobs changed, files that do not belong, a log cut
back behind a checkpoint held elsewhere, and a log that went another way than such a checkpoint (a fork).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from router.ledger import records
from router.ledger.checkpoint import Checkpoint, CheckpointError, Verifier, open_note
from router.ledger.clock import ClockWatch, in_words
from router.ledger.journal import is_segment
from router.ledger.merkle import HASH_BYTES, leaf_hash
from router.ledger.reader import LogReader, parse_path
from router.ledger.records import RecordError
from router.ledger.retention import pruned_by
from router.ledger.tiles import WIDTH, RightEdge, TileError, pack_entries, split_hashes, tile_path, unpack_entries

_HELD = "a checkpoint held elsewhere"


class Report:
    """What a verification found. `problems` empty: the log is whole. `notes` are worth knowing and no problem."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = ""
        self.size = 0
        self.pruned = 0
        self.frames = 0
        self.problems: list[str] = []
        self.notes: list[str] = []

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify_log(root: Path, verifiers: list[Verifier], held: Sequence[bytes] = ()) -> Report:
    """Check one log.

    Args:
        root: its directory.
        verifiers: the keys that are trusted.
        held: checkpoints of logs (signed notes) that were kept elsewhere; those of other logs are passed over.
    """
    report = Report(root)
    try:
        _Verification(report, verifiers, held).run()
    except OSError as error:
        report.problems.append(f"{error.filename or root}: cannot be read: {error.strerror}")
    return report


class _Verification:
    def __init__(self, report: Report, verifiers: list[Verifier], held: Sequence[bytes]) -> None:
        self.report = report
        self.root = report.root
        self.verifiers = verifiers
        self.held = held
        self.log = LogReader(self.root)
        self.roots: dict[int, bytes] = {}
        self.partial: dict[str, bytes] = {}
        """Right contents of the tiles that are not full, or not written yet, by the path they will have."""
        self.wanted_blobs: dict[str, int] = {}
        self.pruned: set[int] = set()
        self.may_be_pruned: set[int] = set()
        self.clock = ClockWatch()

    def run(self) -> None:
        signed = [*self._frames(), *self._heads()]
        own = [checkpoint for _, checkpoint in signed]
        self.report.origin = own[0].origin if own else ""
        self.report.size = self.log.size
        held = list(self._held())
        signed_size = max((checkpoint.size for checkpoint in own), default=0)
        if self.log.size > signed_size:  # by a number that somebody wrote, perhaps, and walking so far would never end
            self._problem(f"the journal ends at entry {self.log.size}, and only {signed_size} entries are signed")
            return
        self._walk({item.size for item in own} | {item.size for item in held})
        for where, checkpoint in signed:
            if checkpoint.origin != self.report.origin:
                self._problem(f"{where}: it belongs to another log, {checkpoint.origin}")
            self._compare(where, checkpoint)
        for checkpoint in held:
            self._compare(_HELD, checkpoint)
        undeclared = self.pruned - self.may_be_pruned
        for index in sorted(undeclared):
            self._problem(
                f"the entries {index * WIDTH} to {(index + 1) * WIDTH - 1} are gone, and no record says they were pruned"
            )
        self.report.pruned = len(self.pruned - undeclared) * WIDTH
        self._files()

    def _problem(self, text: str) -> None:
        # It may quote the name of a file, which is whatever somebody called it.
        self.report.problems.append("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))

    def _frames(self) -> list[tuple[str, Checkpoint]]:
        """The journal's signed checkpoints; its own form is checked on the way."""
        signed: list[tuple[str, Checkpoint]] = []
        end: int | None = None
        segments = self.log.segments
        if not segments:
            self._problem("there is no journal: this is no log, or it was emptied")
        for segment in segments:
            first = segment.frames[0].first if segment.frames else int(segment.path.name)
            if first != int(segment.path.name) or (end is not None and first != end):
                self._problem(f"journal/{segment.path.name}: entries before it are missing, or the file was renamed")
            if segment.torn_bytes and segment is not segments[-1]:
                self._problem(f"journal/{segment.path.name}: damaged at byte {segment.good_bytes}")
            elif segment.torn_bytes:
                text = f"the last {segment.torn_bytes} bytes of the journal are no whole append (a crash, or one at work)"
                self.report.notes.append(text)
            for frame in segment.frames:
                end = frame.end
                try:
                    checkpoint = open_note(frame.note, self.verifiers)
                except CheckpointError as error:
                    self._problem(f"the append that ends at entry {frame.end}: {error}")
                    continue
                if checkpoint.size != frame.end:
                    self._problem(f"the append that ends at entry {frame.end} is signed for {checkpoint.size} entries")
                signed.append((f"the append that ends at entry {frame.end}", checkpoint))
            end = end if segment.frames else first
        self.report.frames = len(signed)
        return signed

    def _heads(self) -> list[tuple[str, Checkpoint]]:
        signed = []
        for name in ("head", "checkpoint"):
            path = self.root / name
            if not path.is_file():
                if name == "head" and (self.report.frames or self.log.base):
                    self._problem(f"`{name}` is missing")
                continue
            try:
                signed.append((f"`{name}`", open_note(path.read_bytes(), self.verifiers)))
            except CheckpointError as error:
                self._problem(f"`{name}`: {error}")
        return signed

    def _held(self) -> list[Checkpoint]:
        found = []
        for note in self.held:
            try:
                checkpoint = open_note(note, self.verifiers)
            except CheckpointError as error:
                self._problem(f"{_HELD}: {error}")
                continue
            if checkpoint.origin == self.report.origin:
                found.append(checkpoint)
        return found

    def _compare(self, where: str, checkpoint: Checkpoint) -> None:
        if checkpoint.size > self.log.size:
            missing = checkpoint.size - self.log.size
            self._problem(f"{where} signs {checkpoint.size} entries: the last {missing} are missing (truncated)")
        elif self.roots.get(checkpoint.size) not in (checkpoint.root, None):
            kind = "the log went another way since (a fork)" if where == _HELD else "entries were changed"
            self._problem(f"{where} signs another root at size {checkpoint.size}: {kind}")

    def _walk(self, sizes: set[int]) -> None:
        """Through all entries: leaf hashes, tiles, records, and the roots at the sizes that were signed."""
        edge = RightEdge()
        self.roots[0] = edge.root()
        stops = sorted(sizes)
        for index in range(-(-self.log.size // WIDTH)):
            leaves = self._bundle(index)
            first, last = edge.size, edge.size + len(leaves)
            within = stops[bisect_right(stops, first) : bisect_right(stops, last)]
            for stop in [*within, last]:
                for path, data in edge.extend(leaves[edge.size - first : stop - first]):
                    self._compare_tile(path, data)
                self.roots[stop] = edge.root()
        self.partial.update((path.split(".p/")[0], data) for path, data in edge.partial_tiles())

    def _bundle(self, index: int) -> list[bytes]:
        """The leaf hashes of one bundle, from the journal and the file, which must agree."""
        first, end = index * WIDTH, min(self.log.size, (index + 1) * WIDTH)
        path = tile_path("entries", index)
        file = self.root / path
        entries: list[bytes] | None = None
        if file.is_file():
            try:
                entries = unpack_entries(file.read_bytes())
            except TileError as error:
                self._problem(f"{path}: {error}")
            if entries is not None and len(entries) != WIDTH:
                self._problem(f"{path}: it holds {len(entries)} entries instead of {WIDTH}")
                entries = entries[: end - first] if len(entries) > end - first else None
        journal = {n: self.log.journal[n] for n in range(first, end) if n in self.log.journal}
        if entries is not None:
            for n, entry in journal.items():
                if entries[n - first] != entry:
                    self._problem(f"entry {n}: the journal and {path} differ")
                    break
        elif len(journal) == end - first:
            entries = list(journal.values())
        if entries is None:
            return self._pruned_leaves(index)
        if end - first < WIDTH or not file.is_file():
            self.partial[path] = pack_entries(entries)
        for n, entry in enumerate(entries, start=first):
            self._record(n, entry)
        return [leaf_hash(entry) for entry in entries]

    def _pruned_leaves(self, index: int) -> list[bytes]:
        path = tile_path(0, index)
        self.pruned.add(index)
        try:
            leaves = split_hashes((self.root / path).read_bytes())
        except (FileNotFoundError, TileError):
            leaves = []
        if len(leaves) != WIDTH:
            self._problem(f"{path}: missing or damaged, and so are its entries")
            return [bytes(HASH_BYTES)] * WIDTH
        return leaves

    def _compare_tile(self, path: str, data: bytes) -> None:
        file = self.root / path
        if file.is_file():
            if file.read_bytes() != data:
                self._problem(f"{path}: its hashes are not those of the entries")
        elif self._end_of(path) - WIDTH < self.log.base:
            self._problem(f"{path} is missing")
        else:  # a crash came before it was written; the journal has its entries
            self.partial[path] = data

    @staticmethod
    def _end_of(path: str) -> int:
        """The entry after the last that a full tile speaks of."""
        level, index = parse_path(path)
        return (index + 1) * WIDTH if level == "entries" else (index + 1) << 8 * (int(level) + 1)

    def _record(self, n: int, entry: bytes) -> None:
        try:
            record = records.decode(entry)
            if record.n != n:
                self._problem(f"entry {n} says that it is entry {record.n}: entries were moved, dropped or added")
            for blob in records.blobs_of(record):
                self.wanted_blobs.setdefault(blob, n)
            jump = (self.clock.start if record.e == records.OPEN else self.clock.look)(record.t, record.m)
            if jump:
                self.report.notes.append(f"entry {n}: {in_words(jump)}; times before and after it do not compare")
            if (gone := pruned_by(record)) is not None:
                self.may_be_pruned.update(range(*gone))
        except (RecordError, KeyError, TypeError, ValueError) as error:
            self._problem(f"entry {n}: {error}")

    def _files(self) -> None:
        """Every file must be one that belongs to a log, with the content it must have."""
        for blob, n in self.wanted_blobs.items():
            if not (self.root / "blobs" / blob).is_file():
                self._problem(f"blobs/{blob}, which entry {n} refers to, is missing")
        for file in sorted(self.root.rglob("*")):
            if file.is_dir() and not file.is_symlink():
                continue
            name = file.relative_to(self.root).as_posix()
            if file.name.startswith(".") and file.name.endswith(".tmp"):
                self.report.notes.append(f"{name}: left by a crash")
            elif name.startswith("tile/"):
                self._tile_file(name, file)
            elif name.startswith("blobs/"):
                if sha256(file.read_bytes()).hexdigest() != file.name:
                    self._problem(f"{name}: the content does not have this hash")
            elif name == "key.vkey":
                if file.read_bytes().decode("utf-8", "replace") not in {f"{key.line}\n" for key in self.verifiers}:
                    self._problem("key.vkey is not a key that is trusted here")
            elif name == "lock":
                if file.stat().st_size:
                    self._problem("lock: the file should be empty")
            elif name not in ("head", "checkpoint") and not (name == f"journal/{file.name}" and is_segment(file.name)):
                self._problem(f"{name}: this file is no part of a log")

    def _tile_file(self, name: str, file: Path) -> None:
        """A tile's place and, for a partial one, its content; that of full ones was compared on the way through the log."""
        whole, _, width = name.partition(".p/")
        try:
            full = self._end_of(whole) <= self.log.size
        except ValueError:
            self._problem(f"{name}: this file is no part of a log")
            return
        if not width:
            if not full:
                self._problem(f"{name}: a tile of entries that the log does not have")
            return
        right = (self.root / whole).read_bytes() if full and (self.root / whole).is_file() else self.partial.get(whole)
        data = file.read_bytes()
        try:
            count = len(unpack_entries(data)) if "/entries/" in whole else len(split_hashes(data))
        except TileError:
            count = -1
        if right is None or not right.startswith(data) or str(count) != width:
            self._problem(f"{name}: its content is not that of the entries")
