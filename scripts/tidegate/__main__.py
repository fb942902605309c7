"""Where the `tidegate` command begins: an interruption while the others are imported ends it without a traceback."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the commands, which takes a second or more, and run the one that is asked for."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started us had it ignored
    if quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tidegate import cli

    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
