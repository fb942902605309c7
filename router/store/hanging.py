"""A server of the store that hangs: it acknowledges what it is sent, so TCP sees nothing wrong, and never answers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, event


class Impatience:
    """Cuts the connections of an engine under a call that takes too long: the call fails then, as when the server has ended.

    The driver has limits for connecting and for lost packets only, and those that the server would keep are of no use here.

    Args:
        engine: whose connections, of the driver psycopg.
    """

    def __init__(self, engine: Engine) -> None:
        self._open: set[Any] = set()
        event.listen(engine, "connect", lambda connection, _record: self._open.add(connection))
        event.listen(engine, "close", lambda connection, _record: self._open.discard(connection))
        event.listen(engine, "close_detached", self._open.discard)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What is done under it takes so long at most."""
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        """All of them: who hangs for one, hangs for all. Those that nobody uses are opened anew when they are needed."""
        for connection in tuple(self._open):
            # A copy of the descriptor, so that the connection's own closing is not disturbed.
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
