"""One append-only Merkle log on disk: durable appends, recovery after a crash, tiles and checkpoints for verifiers.

    journal/NNN     write-ahead frames, each signed (`router.ledger.journal`): an append is durable once its frame is
    tile/...        C2SP tlog-tiles, made from the journal
    checkpoint      the newest one whose tiles, partial ones included, are published
    head            the same; unlike `checkpoint` it is there from the beginning
    blobs/HASH      what records refer to by its SHA-256
    key.vkey        the verifier key, for convenience: an auditor keeps a copy elsewhere
    lock            held while a process appends

One process appends, and a lock on the directory makes sure of it. In it one thread may `write` and `put_blob` while another
does what waits for the medium: `sync`, `roll_back`, `tidy`, `publish`, `drop_bundle`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from router.ledger.checkpoint import Checkpoint, Signer
from router.ledger.disk import Disk
from router.ledger.journal import join_frame, read_journal, segment_path
from router.ledger.merkle import EMPTY_ROOT, leaf_hash
from router.ledger.recover import Growth, origin_of_empty, recover, without_lost_blobs
from router.ledger.tiles import LONGEST_ENTRY, WIDTH, RightEdge, pack_each, tile_path
from router.secret_file import make_private_directory

SEGMENT_BYTES = 1 << 21
"""A journal segment longer than this is closed, and removed once tiles hold all of it."""
_REMEMBERED = 4096
"""Blobs known to be there at most."""


class LogBusy(Exception):
    """Another process appends to this log."""


class LogGone(OSError):
    """The log's files were removed, or put elsewhere, while it was written: nobody will find what is written from now on."""


class _State(msgspec.Struct, frozen=True):
    """How far the log has got: its tree, the signed note of it, and the bytes in the journal's last segment."""

    growth: Growth
    note: bytes
    bytes: int


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
        self.lock = threading.RLock()
        """Held for as long as it takes to write an append; never while anything waits for the medium."""
        self._newest = self._synced = _State(Growth(RightEdge()), b"", 0)
        self._unsettled: dict[Path, None] = {}
        self._partial: set[Path] = set()
        """Directories of tiles that are not full; a look at the disk for each that becomes full costs more than remembering."""
        self._blobs: list[Path] = []
        self._known_blobs: set[str] = set()
        self._doubtful: set[Path] = set()
        """Blobs of a sync that failed: the system may have dropped their pages, so that to sync them again proves nothing."""
        self._segment_is_new = False
        self._published = b""
        self._journal = -1
        make_private_directory(root)
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
        return self._newest.growth.size

    def _start(self) -> None:
        segments = without_lost_blobs(self.root, read_journal(self.root), self._signer.verifier)
        self._segments = [(segment.path, segment.frames[-1].end if segment.frames else 0) for segment in segments]
        growth, note = self._newest.growth, b""
        if any(segment.frames for segment in segments):
            last, growth = recover(self.root, segments, self._signer.verifier)
            self.origin = last.origin
            note = next(segment.frames[-1].note for segment in reversed(segments) if segment.frames)
        else:
            self.origin = origin_of_empty(self.root, self._signer.verifier) or self.origin
            head = self._signer.sign(Checkpoint(self.origin, 0, EMPTY_ROOT))
            self._disk.put(self.root / "head", head, durable=True)
        if not segments:
            self._segments = [(segment_path(self.root, 0), 0)]
        path = self._segments[-1][0]
        self._journal = self._disk.open_append(path)
        self._disk.sync_directory(path.parent)
        self._disk.sync_directory(self.root)
        self.recovered_bytes = segments[-1].torn_bytes if segments else 0
        self._newest = self._synced = _State(growth, note, segments[-1].good_bytes if segments else 0)
        self._torn = True
        self._heal()
        self._partial.update(self.root.glob("tile/**/*.p"))
        for stale in [*self.root.glob("tile/**/*.p/*"), *self.root.glob("**/.*.tmp")]:
            self._disk.remove(stale)
        self._disk.put(self.root / "key.vkey", self._signer.verifier.line.encode() + b"\n", durable=True)
        self._put_tiles()
        if note:
            self.publish()

    def append(self, entries: Sequence[bytes]) -> int:
        """Append entries; when this returns they are on the medium, under a signature: `write`, `sync` and `tidy` in one.

        Returns:
            The index of the first.

        Raises:
            OSError: the disk is full or broken; nothing was appended, and the same entries may be tried again.
            ValueError: an entry is longer than 65,535 bytes.
        """
        first = self.write(entries)
        try:
            self.sync()
        except OSError:
            self.roll_back()
            raise
        with contextlib.suppress(OSError):
            self.tidy()
        return first

    def write(self, entries: Sequence[bytes]) -> int:
        """Give entries to the operating system, under a signature: they survive the end of this process, not that of the machine.

        Returns:
            The index of the first.

        Raises:
            OSError: the disk is full or broken; nothing was written, and the same entries may be tried again.
            ValueError: an entry is longer than 65,535 bytes.
        """
        if max(map(len, entries), default=0) > LONGEST_ENTRY:
            raise ValueError("an entry of the log may have 65,535 bytes")
        packed = pack_each(entries)
        with self.lock:
            first = self.size
            self._heal()
            grown = self._newest.growth.grown(packed, list(map(leaf_hash, entries)))
            note = self._signer.sign(Checkpoint(self.origin, grown.size, grown.edge.root()))
            frame = join_frame(first, packed, note)
            self._torn = True
            self._disk.write(self._journal, frame)
            self._torn = False
            self._newest = _State(grown, note, self._newest.bytes + len(frame))
        return first

    def sync(self) -> None:
        """Bring to the medium what was written before this was called, and the blobs it refers to.

        Raises:
            LogGone: the journal is not where it was; this log can never be written again.
            OSError: it is not there; `roll_back` must follow before anything else is written.
        """
        with self.lock:
            if self._newest is self._synced:
                return
            state, blobs = self._newest, self._blobs
            self._blobs = []
        try:
            if blobs:
                self._write_doubtful()
                self._disk.settle(blobs)
            if self._segment_is_new:
                self._disk.sync_directory(self.root / "journal")
                self._segment_is_new = False
            self._disk.sync(self._journal)
            self._check_place()
        except OSError:
            with self.lock:
                self._blobs = [*blobs, *self._blobs]
                self._doubtful.update(blobs)
                self._known_blobs.clear()
            raise
        self._synced = state
        self._segments[-1] = (self._segments[-1][0], state.growth.size)

    def _write_doubtful(self) -> None:
        """Write anew, as other files, the blobs that an earlier sync left in doubt."""
        for path in list(self._doubtful):
            data = path.read_bytes()
            if sha256(data).hexdigest() != path.name:
                raise OSError(errno.EIO, "a blob was lost in a failed write; it is kept again when it comes again", str(path))
            self._disk.put(path, data, durable=False)
            self._doubtful.discard(path)

    def roll_back(self) -> None:
        """Take back everything that was written and not brought to the medium."""
        with self.lock:
            self._newest = self._synced
            self._torn = True

    def tidy(self) -> None:
        """Write the tiles that became full, and close a segment of the journal that is long enough.

        Raises:
            OSError: something could not be written; it will be tried again, and the log itself is not affected.
        """
        self._put_tiles()
        if self._synced.bytes >= self._segment_bytes:
            self._rotate()

    def publish(self) -> bytes:
        """Write the partial tiles and the checkpoint that they prove.

        Returns:
            The checkpoint, a signed note.

        Raises:
            LogGone: as `sync`.
            OSError: it could not be written; the log itself is not affected.
        """
        note, growth = self._synced.note, self._synced.growth
        if self._published == note:
            return note
        self._check_place()
        partial = growth.edge.partial_tiles()
        if growth.tail:
            partial.append((tile_path("entries", growth.size // WIDTH, len(growth.tail)), b"".join(growth.tail)))
        self._put_tiles()
        for path, data in partial:
            self._partial.add((self.root / path).parent)
            self._disk.put(self.root / path, data, durable=False)
        for name in ("checkpoint", "head"):
            self._disk.put(self.root / name, note, durable=False)
        for path, _ in partial:
            directory = (self.root / path).parent
            for other in directory.iterdir():
                if other != self.root / path:
                    self._disk.remove(other)
        self._published = note
        return note

    def put_blob(self, data: bytes) -> str:
        """Keep bytes under their SHA-256, for records to refer to; the next `sync` brings them to the medium.

        Returns:
            The hash in hex.

        Raises:
            OSError: they could not be written.
        """
        name = sha256(data).hexdigest()
        path = self.root / "blobs" / name
        if name not in self._known_blobs:
            if not path.exists() or path.read_bytes() != data:  # a power failure may have left the name without the bytes
                self._disk.put(path, data, durable=False)
            with self.lock:
                self._blobs.append(path)
                if len(self._known_blobs) >= _REMEMBERED:
                    self._known_blobs.clear()
                self._known_blobs.add(name)
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
            if self._synced.note and self._journal >= 0:
                self.publish()
        finally:
            self._release()

    def _release(self) -> None:
        for descriptor in (self._journal, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._journal = self._lock = -1

    def _check_place(self) -> None:
        if not self._disk.is_at(self._segments[-1][0], self._journal):
            raise LogGone(errno.ESTALE, "its journal was removed or moved away", str(self._segments[-1][0]))

    def _heal(self) -> None:
        """Cut off what a failed append left, before anything is written after it."""
        if self._torn:
            self._disk.truncate(self._journal, self._newest.bytes)
            self._disk.sync(self._journal)
            self._torn = False

    def _put_tiles(self) -> None:
        """Write the full tiles that are due. Not durable yet: until `_rotate` the journal holds the same."""
        full = self._synced.growth.full
        for path in list(full):
            file = self.root / path
            self._disk.put(file, full[path], durable=False)
            self._unsettled[file] = None
            with self.lock:
                full.pop(path)
                self._newest.growth.full.pop(path, None)
            partial = file.with_name(file.name + ".p")
            if partial in self._partial:
                for other in partial.iterdir():
                    self._disk.remove(other)
                partial.rmdir()
                self._partial.discard(partial)

    def _rotate(self) -> None:
        """Begin a new segment, and remove those whose entries are all in full tiles on the medium.

        Whoever writes is not kept waiting: the segment changes at a moment at which nothing waits for the medium.
        """
        with self.lock:
            if self._newest is not self._synced:
                return
            settled = self.size - self.size % WIDTH
            old, path = self._journal, segment_path(self.root, self.size)
            self._journal = self._disk.open_append(path)
            self._segment_is_new = True
            self._newest = self._synced = _State(self._synced.growth, self._synced.note, 0)
            self._segments.append((path, self.size))
        os.close(old)
        self._disk.sync_directory(path.parent)
        self._segment_is_new = False
        self._disk.settle(self._unsettled)
        self._unsettled.clear()
        # The last segment with entries stays in any case: where the log ends is read from its last frame.
        while len(self._segments) > 2 and self._segments[0][1] <= settled:
            self._disk.remove(self._segments[0][0])
            del self._segments[0]
