"""A provider on loopback: answers every request with what it was told to, and keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeProvider:
    """`status`, `body`, `headers` are the answer; `cut` breaks the connection after so many bytes."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.body = b"{}"
        self.headers: dict[str, str] = {}
        self.cut = 0
        self.answer: Callable[[str, bytes], tuple[str, bytes]] | None = None
        """Makes content type and body of the answer from path and body of the request, in place of `body`."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                provider.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                kind, answered = (
                    ("application/json", provider.body) if provider.answer is None else provider.answer(self.path, body)
                )
                self.send_response(provider.status)
                for name, value in {"content-type": kind, **provider.headers}.items():
                    self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                sent = answered[: provider.cut] if provider.cut else answered
                for i in range(0, len(sent), 97):
                    piece = sent[i : i + 97]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                if provider.cut:
                    self.close_connection = True
                    return
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
