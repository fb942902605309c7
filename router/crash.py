"""A process that dies must not leave on disk what it had in memory: no core dump of anything that sees prompts or keys."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

_FILTER = Path("/proc/self/coredump_filter")


def forbid_core_dumps() -> None:
    """Forbid this process, and what it starts, to dump core.

    The limit keeps the kernel from writing a file; it does not hold for a `core_pattern` that is a pipe (core(5)), so the
    filter leaves nothing of the memory in the dump either, where there is one (Linux).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        _FILTER.write_text("0", encoding="ascii")
