"""A client's answer written by a coordinator of steps: the head once, then bodies or events in the client's framing."""

from __future__ import annotations

from router.steps import Step
from router.wire.direct import DirectRequest


class Reply:
    """The way back of a client whose request has steps.

    Args:
        client: the connection.
    """

    def __init__(self, client: DirectRequest) -> None:
        self._client = client
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether anything has been written."""
        return self._begun

    def whole(self, step: Step, body: bytes, remark: str) -> None:
        """The step's answer with this body."""
        self._begun = True
        self._client.listen(None)
        self._client.answer(step.status, step.lines(remark), body)

    def write(self, step: Step, data: bytes, remark: str) -> None:
        """A piece of the step's stream; the head goes before the first one."""
        if self._client.gone:
            return
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._client.speaks_chunked and data else data
        if self._begun:
            self._client.transport.write(framed)
            return
        self._begun = True
        chunks = self._client.speaks_chunked
        lines = step.lines(remark) + (b"transfer-encoding: chunked\r\n" if chunks else b"")
        self._client.begin(self._client.make_head(step.status, lines, close=not chunks) + framed)

    def end(self) -> None:
        """The stream is whole."""
        if not self._client.gone:
            if self._client.speaks_chunked:
                self._client.transport.write(b"0\r\n\r\n")
            self._client.finish()

    def cut(self) -> None:
        """The stream broke: nothing that looks like success."""
        if not self._client.gone:
            self._client.abort()
