"""What a person sees while something takes long: what is waited for, since when, and the latest line of a log."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_REPEAT_S = 15.0
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# "(EngineCore pid=12) INFO 11-22 00:36:18 [core.py:113] " says nothing to somebody who waits.
_PREFIX = re.compile(
    r"^(\([^)]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR)[: ]+)?(\d\d-\d\d \d\d:\d\d:\d\d\s*)?(\[[\w./-]+:\d+\]\s*)?"
)


class Waiting:
    """A status line on a terminal; elsewhere a line at the start, at every change, and four times a minute."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what = what
        self._started = time.monotonic()
        self._printed_at = -_REPEAT_S
        self._printed_what = ""
        self._status: Status | None = None

    def update(self, what: str | None = None, detail: str = "") -> None:
        """Show what is waited for now; `detail` is a log line."""
        self._what = what or self._what
        elapsed = time.monotonic() - self._started
        if self._status is not None:
            room = max(20, self._console.width - len(self._what) - 16)
            text = f"{escape(self._what)} [cyan]{elapsed:.0f} s[/cyan]  [dim]{escape(detail[:room])}[/dim]"
            self._status.update(text)
        elif self._what != self._printed_what or elapsed - self._printed_at >= _REPEAT_S:
            self._printed_what, self._printed_at = self._what, elapsed
            line = f"{self._what} ... {elapsed:.0f} s  {detail[:160]}".rstrip()
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Iterator[Waiting]:
    """Show a `Waiting` for the length of the block."""
    line = Waiting(console, what)
    if console.is_terminal:
        with console.status(escape(what)) as status:
            line._status = status
            yield line
    else:
        line.update()
        yield line


def newest_log(directory: Path) -> Path | None:
    """The log that was written to last; None when there is none."""
    return max(directory.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


def latest_line(path: Path | None) -> str:
    """The last line of a log that says something, without colours, time stamps and source positions."""
    if path is None:
        return ""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            if text := _PREFIX.sub("", _ANSI.sub("", line).rpartition("\r")[2]).strip():
                return text
    return ""


def last_lines(path: Path, count: int) -> str:
    """The last lines of a log without colours."""
    with contextlib.suppress(OSError):
        return "\n".join(_ANSI.sub("", path.read_text(errors="replace")).splitlines()[-count:])
    return ""
