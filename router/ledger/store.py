"""One append-only Merkle log on disk: durable appends, recovery after a crash, tiles and checkpoints for verifiers.

    journal/NNN     write-ahead frames, each signed (`router.ledger.journal`): an append is durable once its frame is
    tile/...        C2SP tlog-tiles, made from the journal
    head            the newest signed checkpoint, renewed after every append
    checkpoint      the newest one whose tiles, partial ones included, are published
    blobs/HASH      what records refer to by its SHA-256
    key.vkey        the verifier key, for convenience: an auditor keeps a copy elsewhere
    lock            held while a process appends

Not thread-safe: one thread of one process appends, and a lock on the directory makes sure of the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from router.ledger.checkpoint import Checkpoint, Signer
from router.ledger.disk import Disk
from router.ledger.journal import pack_frame, read_journal, segment_path
from router.ledger.merkle import leaf_hash
from router.ledger.recover import Growth, LogDamaged, recover
from router.ledger.tiles import LONGEST_ENTRY, WIDTH, RightEdge, pack_entries, tile_path

SEGMENT_BYTES = 1 << 20
"""A journal segment longer than this is closed, and removed once tiles hold all of it."""


class LogBusy(Exception):
    """Another process appends to this log."""


class LogStore:
    """A log opened for appending.

    Args:
        root: its directory; made when missing.
        signer: signs its checkpoints.
        name: begins the origin of a log made now.
        disk: does the writing.
        segment_bytes: size of a journal segment.

    Raises:
        LogBusy: another process has it open.
        LogDamaged: it does not agree with its signatures.
        OSError: the directory cannot be used.
    """

    def __init__(
        self,
        root: Path,
        signer: Signer,
        name: str = "tidegate/audit",
        disk: Disk | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.root = root
        self.origin = f"{name}/{secrets.token_hex(4)}"
        self.recovered_bytes = 0
        """Bytes of an append that a crash cut short; they were removed when the log was opened."""
        self._signer = signer
        self._disk = disk or Disk()
        self._segment_bytes = segment_bytes
        self._growth = Growth(RightEdge())
        self._unsettled: dict[Path, None] = {}
        self._note = b""
        self._journal = -1
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._start()
        except BlockingIOError:
            self._release()
            raise LogBusy(f"{root}: another process appends to this log") from None
        except BaseException:
            self._release()
            raise

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self._growth.size

    def _start(self) -> None:
        segments = read_journal(self.root)
        self._segments = [(segment.path, segment.frames[-1].end if segment.frames else 0) for segment in segments]
        if any(segment.frames for segment in segments):
            last, self._growth = recover(self.root, segments, self._signer.verifier)
            self.origin = last.origin
            self._note = next(segment.frames[-1].note for segment in reversed(segments) if segment.frames)
        elif (self.root / "tile").exists() or (self.root / "head").exists():
            raise LogDamaged(f"{self.root}: there are tiles or a checkpoint, but the journal is gone")
        if not segments:
            self._segments = [(segment_path(self.root, 0), 0)]
        path = self._segments[-1][0]
        self._journal = self._disk.open_append(path)
        self._disk.sync_directory(path.parent)
        self._disk.sync_directory(self.root)
        self.recovered_bytes = segments[-1].torn_bytes if segments else 0
        self._written = segments[-1].good_bytes if segments else 0
        self._torn = True
        self._heal()
        for stale in [*self.root.glob("tile/**/*.p/*"), *self.root.glob("**/.*.tmp")]:
            self._disk.remove(stale)
        self._disk.put(self.root / "key.vkey", self._signer.verifier.line.encode() + b"\n", durable=True)
        self._put_tiles()
        if self._note:
            self.publish()

    def append(self, entries: Sequence[bytes]) -> int:
        """Append entries; when this returns they are on the medium, under a signature.

        Returns:
            The index of the first.

        Raises:
            OSError: the disk is full or broken; nothing was appended, and the same entries may be tried again.
            ValueError: an entry is longer than 65,535 bytes.
        """
        if any(len(entry) > LONGEST_ENTRY for entry in entries):
            raise ValueError("an entry of the log may have 65,535 bytes")
        first = self.size
        self._heal()
        leaves = [leaf_hash(entry) for entry in entries]
        frontier = self._growth.edge.frontier.copy()
        for leaf in leaves:
            frontier.append(leaf)
        note = self._signer.sign(Checkpoint(self.origin, frontier.size, frontier.root()))
        frame = pack_frame(first, entries, note)
        self._torn = True
        self._disk.write(self._journal, frame)
        self._disk.sync(self._journal)
        self._torn = False
        # From here on the entries are in the log, whatever happens to the files made from it.
        self._written += len(frame)
        self._note = note
        self._growth.take(entries, leaves)
        self._segments[-1] = (self._segments[-1][0], self.size)
        with contextlib.suppress(OSError):
            self._disk.put(self.root / "head", note, durable=False)
            self._put_tiles()
            if self._written >= self._segment_bytes:
                self._rotate()
        return first

    def publish(self) -> bytes:
        """Write the partial tiles and the checkpoint that they prove.

        Returns:
            The checkpoint, a signed note.

        Raises:
            OSError: it could not be written; the log itself is not affected.
        """
        tail = self._growth.tail
        partial = self._growth.edge.partial_tiles()
        if tail:
            partial.append((tile_path("entries", self.size // WIDTH, len(tail)), pack_entries(tail)))
        self._put_tiles()
        for path, data in partial:
            self._disk.put(self.root / path, data, durable=False)
        for name in ("checkpoint", "head"):
            self._disk.put(self.root / name, self._note, durable=False)
        for path, _ in partial:
            directory = (self.root / path).parent
            for other in directory.iterdir():
                if other != self.root / path:
                    self._disk.remove(other)
        return self._note

    def put_blob(self, data: bytes) -> str:
        """Keep bytes under their SHA-256, durably, for records to refer to.

        Returns:
            The hash in hex.

        Raises:
            OSError: they could not be written.
        """
        name = sha256(data).hexdigest()
        path = self.root / "blobs" / name
        if not path.exists():
            self._disk.put(path, data, durable=True)
        return name

    @property
    def base(self) -> int:
        """The first entry that the journal holds; what lies before it is in full tiles on the medium."""
        return int(self._segments[0][0].name)

    def drop_bundle(self, index: int) -> None:
        """Remove the entries of a full bundle for good; its hashes stay, so the log still verifies.

        Raises:
            OSError: the file could not be removed.
        """
        self._disk.remove(self.root / tile_path("entries", index))

    def close(self) -> None:
        """Publish what there is and let go of the directory."""
        try:
            if self._note and self._journal >= 0:
                self.publish()
        finally:
            self._release()

    def _release(self) -> None:
        for descriptor in (self._journal, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._journal = self._lock = -1

    def _heal(self) -> None:
        """Cut off what a failed append left, before anything is written after it."""
        if self._torn:
            self._disk.truncate(self._journal, self._written)
            self._disk.sync(self._journal)
            self._torn = False

    def _put_tiles(self) -> None:
        """Write the full tiles that are due. Not durable yet: until `_rotate` the journal holds the same."""
        full = self._growth.full
        for path in list(full):
            self._disk.put(self.root / path, full[path], durable=False)
            self._unsettled[self.root / path] = None
            del full[path]
            partial = (self.root / path).with_name(Path(path).name + ".p")
            if partial.is_dir():
                for file in partial.iterdir():
                    self._disk.remove(file)
                partial.rmdir()

    def _rotate(self) -> None:
        """Begin a new segment, and remove those whose entries are all in full tiles on the medium."""
        for path in self._unsettled:
            self._disk.settle(path)
        self._unsettled.clear()
        path = segment_path(self.root, self.size)
        descriptor = self._disk.open_append(path)
        self._disk.sync_directory(path.parent)
        os.close(self._journal)
        self._journal, self._written = descriptor, 0
        settled = self.size - self.size % WIDTH
        # The last segment stays in any case: where the log ends is read from its last frame.
        keep = [*(item for item in self._segments[:-1] if item[1] > settled), self._segments[-1]]
        for old, _ in self._segments[: len(self._segments) - len(keep)]:
            self._disk.remove(old)
        self._segments = [*keep, (path, self.size)]
