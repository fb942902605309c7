"""A clock that was set, told from its distance to the machine's steady one: what a log, or a limit, went by then is not time.

`t - m`, wall minus monotonic, is the same for all that one run of a machine stamps. Where it changes, somebody set the clock, or
the machine slept.
"""

from __future__ import annotations

TOLERANCE_S = 1.0
"""What a clock that is kept in time may be slewed between two looks, and more."""


class ClockWatch:
    """Compares each moment with the one before. Times in seconds: `wall` of UNIX, `steady` of the monotonic clock."""

    def __init__(self) -> None:
        self._distance: float | None = None
        self._wall = 0.0

    def look(self, wall: float, steady: float) -> float:
        """How far the clock was set since the last look: ahead if positive, 0.0 when it was left alone."""
        before, self._distance, self._wall = self._distance, wall - steady, wall
        jump = 0.0 if before is None else self._distance - before
        return jump if abs(jump) > TOLERANCE_S else 0.0

    def start(self, wall: float, steady: float) -> float:
        """As `look`, for a process that starts, perhaps on a machine that did: its steady clock says nothing of before.

        Returns:
            How far its clock is behind the last moment seen, as a negative number; 0.0 when it is not.
        """
        behind = wall - self._wall if self._distance is not None else 0.0
        self._distance, self._wall = wall - steady, wall
        return behind if behind < -TOLERANCE_S else 0.0


def in_words(jump: float) -> str:
    """A jump as a message says it."""
    return f"the clock was set {'ahead' if jump > 0 else 'back'} by {abs(jump):.0f} s"
