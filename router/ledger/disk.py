"""The few things a log does to a disk, each a step at which a crash or a full disk may come: tests put their own in place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from router.secret_file import make_private_directory

_AT_ONCE = 64
"""Files that are open at a time while they are brought to the medium."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Disk:
    """Writes as the operating system does them. Every method raises `OSError` as it does."""

    def open_append(self, path: Path) -> int:
        """A descriptor for appending; the file is made when missing."""
        make_private_directory(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes | bytearray) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Wait until the content is on the medium."""
        os.fdatasync(descriptor)

    def is_at(self, path: Path, descriptor: int) -> bool:
        """True while an open file is still the one of that name."""
        try:
            return os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file off."""
        os.ftruncate(descriptor, size)

    def rename(self, old: Path, new: Path) -> None:
        """Put a file in the place of another, at once."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file that may be gone already."""
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Wait until the names in a directory are on the medium."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Write a whole file that appears complete or not at all; `durable`: and is on the medium when this returns."""
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            descriptor = os.open(temporary, _CREATE, 0o600)
        except FileNotFoundError:
            make_private_directory(path.parent)
            descriptor = os.open(temporary, _CREATE, 0o600)
        try:
            self.write(descriptor, data)
            if durable:
                self.sync(descriptor)
        finally:
            os.close(descriptor)
        self.rename(temporary, path)
        if durable:
            self.sync_directory(path.parent)

    def settle(self, paths: Iterable[Path]) -> None:
        """Bring files that were put without `durable`, and their names, to the medium.

        All are set off before the first is waited for: their blocks are found in one go then, and the file system's own journal
        is written once and not for every file, which takes a third of the CPU and a small part of the time.
        """
        files = list(paths)
        for at in range(0, len(files), _AT_ONCE):
            with contextlib.ExitStack() as opened:
                descriptors = []
                for path in files[at : at + _AT_ONCE]:
                    descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                    opened.callback(os.close, descriptors[-1])
                    with contextlib.suppress(OSError):  # advice that nobody needs it in memory begins to write it
                        os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_DONTNEED)
                for descriptor in descriptors:
                    self.sync(descriptor)
        for directory in dict.fromkeys(path.parent for path in files):
            self.sync_directory(directory)
