"""What a router has used of its leases, in a file mapped into memory: it outlives the process that is killed.

Use is reported to the store some times a second; what a killed router used since the last time would be granted again to the
others. Writing a number into mapped memory costs no system call, and the kernel keeps it when the process goes. Whoever finds a
file that nobody holds any more enters it into the store. A machine that loses its power loses these numbers, no others.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from router.secret_file import make_private_directory

_SUFFIX = ".use"
_SLOT = 256
_SLOTS = 4096
_MOST_NAME = _SLOT - 10
_NUMBER = struct.Struct("<q")
_LENGTH = struct.Struct("<H")


class UsageFile:
    """The file of this process.

    Args:
        directory: holds the files of all routers of this machine; made when missing.
        replica: the name of this process in the store.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, directory: Path, replica: str) -> None:
        make_private_directory(directory)
        self._path = directory / f"{replica}{_SUFFIX}"
        # Locked before it has its name: nobody may find it and take its owner for dead.
        temporary = directory / f".{replica}"
        self._file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            # Room on the disk, not only in the file: mapped memory with none behind it ends the process that writes to it.
            os.posix_fallocate(self._file, 0, _SLOT * _SLOTS)
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._memory = mmap.mmap(self._file, _SLOT * _SLOTS)
        self._free = list(range(_SLOTS - 1, -1, -1))

    def open(self, counter: str) -> int | None:
        """A place for a counter's use; None when there is none left, and then a killed router's last use of it is lost."""
        name = counter.encode()
        if not self._free or len(name) > _MOST_NAME:
            return None
        start = self._free.pop() * _SLOT
        _NUMBER.pack_into(self._memory, start, 0)
        self._memory[start + 10 : start + 10 + len(name)] = name
        _LENGTH.pack_into(self._memory, start + 8, len(name))  # last: from here on it counts
        return start

    def put(self, place: int, used: int) -> None:
        """What is used by now."""
        _NUMBER.pack_into(self._memory, place, used)

    def free(self, place: int) -> None:
        """The counter is of no interest any more."""
        _LENGTH.pack_into(self._memory, place + 8, 0)
        self._free.append(place // _SLOT)

    def close(self) -> None:
        """Everything is in the store: the file goes."""
        self._path.unlink(missing_ok=True)
        self._memory.close()
        os.close(self._file)


class DeadFile:
    """The file of a router that is no more, held so that nobody else enters it, too."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.replica = path.name.removesuffix(_SUFFIX)
        self._path = path
        self._file = descriptor

    def read(self) -> Mapping[str, int]:
        """Counters and what was used of each."""
        data = os.pread(self._file, _SLOT * _SLOTS, 0)
        found: dict[str, int] = {}
        for start in range(0, len(data) - _SLOT + 1, _SLOT):
            (length,) = _LENGTH.unpack_from(data, start + 8)
            if 0 < length <= _MOST_NAME:
                with contextlib.suppress(UnicodeDecodeError):
                    found[data[start + 10 : start + 10 + length].decode()] = _NUMBER.unpack_from(data, start)[0]
        return found

    def close(self, *, entered: bool) -> None:
        """Let go of it; once it is in the store, it goes."""
        if entered:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


def find_dead(directory: Path) -> list[DeadFile]:
    """The files whose owners have ended without a word."""
    found = []
    for path in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink == 0:  # somebody has just entered and removed it
                    raise FileNotFoundError
            except OSError:
                os.close(descriptor)
                continue
            found.append(DeadFile(path, descriptor))
    return found
