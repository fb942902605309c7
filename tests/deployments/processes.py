"""Help for tests that count processes: every process of one test carries its mark in the environment."""

import time
from pathlib import Path

MARK = "TIDEGATE_TEST_MARK"


def marked(mark: str) -> list[int]:
    """Living processes (no zombies) whose environment carries `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float) -> bool:
    """Poll until `condition()` holds; False when it did not within `seconds` (a limit, not a measure)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())
