"""Seeded mutations of upstream responses: what a dying, buggy or hostile engine could send."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_OTHER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{"x":1}'


@dataclass(slots=True)
class Case:
    """One scripted response: its bytes in the pieces they are sent in, and how the connection ends."""

    kind: str
    data: bytes
    cuts: list[int]
    ending: str = "open"
    """`open` (keep-alive), `close` (FIN), `reset` (RST)."""

    def pieces(self) -> list[bytes]:
        """The bytes as they are sent."""
        edges = [0, *sorted(self.cuts), len(self.data)]
        return [self.data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(i: int, text: str) -> bytes:
    """One numbered token as an SSE event."""
    value = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": f"t{i} {text}"}}]}
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def base_stream(rng: random.Random) -> bytes:
    """A whole SSE answer of a few tokens, some of them outside ASCII."""
    events = [event(i, rng.choice(["a", "é", "漢字", "🌊", 'q"', "\\n"])) for i in range(rng.randint(1, 6))]
    return SSE + b"".join(map(chunk, events)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def base_json(rng: random.Random) -> bytes:
    """A whole JSON answer."""
    text = rng.choice(["hi", "é漢🌊", "x" * rng.randint(0, 300)])
    body = json.dumps({"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 9}}, ensure_ascii=False).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _head_of(data: bytes) -> int:
    return data.index(b"\r\n\r\n") + 4


def _valid(data: bytes, rng: random.Random) -> bytes:
    return data


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _half_utf8(data: bytes, rng: random.Random) -> bytes:
    return SSE + chunk(event(0, "x")) + chunk('data: {"c":"漢'.encode()[: -rng.randint(1, 2)])


def _garbage(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        action = rng.randrange(3)
        noise = rng.randbytes(rng.randint(1, 6))
        if action == 0:
            out[at] = noise[0]
        elif action == 1:
            out[at:at] = noise
        else:
            del out[at : at + len(noise)]
    return bytes(out) or b"\x00"


def _garbage_in_head(data: bytes, rng: random.Random) -> bytes:
    at = _head_of(data)
    return _garbage(data[:at], rng) + data[at:]


def _swap_line_ends(data: bytes, rng: random.Random) -> bytes:
    """Bare LF, bare CR or a doubled CR in place of one or of every CRLF."""
    new = rng.choice([b"\n", b"\r", b"\r\r\n", b"\n\r"])
    if rng.random() < 0.3:
        return data.replace(b"\r\n", new)
    spots = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\r\n"]
    at = rng.choice(spots)
    return data[:at] + new + data[at + 2 :]


def _wrong_chunk_size(data: bytes, rng: random.Random) -> bytes:
    body = event(1, "z")
    size = rng.choice([len(body) - 1, len(body) + 1, len(body) * 2, 0, 1 << 40])
    line = rng.choice([b"%x" % size, b"0x%x" % size, b"+%x" % size, b"-1", b"%x " % size, b" %x" % size, b"g", b"", b"f" * 20])
    return SSE + chunk(event(0, "y")) + line + b"\r\n" + body + b"\r\n" + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _huge_line(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([5_000, 70_000, 300_000])
    return SSE + chunk(b"data: " + b"x" * size + b"\n\n") + rng.choice([b"", chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"])


def _no_last_chunk(data: bytes, rng: random.Random) -> bytes:
    whole = base_stream(rng)
    return whole[: -rng.randint(1, 5)]


def _wrong_length(data: bytes, rng: random.Random) -> bytes:
    whole = base_json(rng)
    body = whole[_head_of(whole) :]
    wrong = rng.choice([len(body) + rng.randint(1, 50), max(0, len(body) - rng.randint(1, 20)), 0, 1 << 50])
    text = rng.choice([b"%d" % wrong, b"%d" % wrong, b"-1", b"+%d" % len(body), b"0x5", b"", b"5, 5", b"9" * 30])
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %b\r\n\r\n%b" % (text, body)


def _two_lengths(data: bytes, rng: random.Random) -> bytes:
    at = data.index(b"\r\n") + 2
    extra = rng.choice(
        [
            b"content-length: 3",
            b"transfer-encoding: chunked",
            b"transfer-encoding: gzip",
            b"Content-Length: 0",
            b"TRANSFER-ENCODING: identity",
        ]
    )
    return data[:at] + extra + b"\r\n" + data[at:]


def _two_responses(data: bytes, rng: random.Random) -> bytes:
    more = rng.choice(
        [
            data,
            _OTHER,
            _OTHER[: rng.randrange(1, len(_OTHER))],
            b"\r\n",
            b"\n",
            b"\r\n\r\n",
            b"x",
            b"\0",
            b"HTTP/1.1 200 OK\r\n\r\n",
        ]
    )
    if rng.random() < 0.3:
        at = data.index(b"\r\n") + 2
        data = data[:at] + b"connection: close\r\n" + data[at:]
    return data + more


def _head_flood(data: bytes, rng: random.Random) -> bytes:
    at = data.index(b"\r\n") + 2
    count, size = rng.choice([(150, 10), (2_000, 40), (1, 600_000), (1, 20_000)])
    return data[:at] + b"".join(b"x-%d: %b\r\n" % (i, b"a" * size) for i in range(count)) + data[at:]


def _nuls(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + b"\0" * rng.randint(1, 3) + data[at + rng.randint(0, 1) :]


def _no_length(data: bytes, rng: random.Random) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + data[_head_of(data) :]


def _informational(data: bytes, rng: random.Random) -> bytes:
    first = rng.choice(
        [
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 102 P\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\ncontent-length: 7\r\n\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
        ]
    )
    return first + data


def _odd_status(data: bytes, rng: random.Random) -> bytes:
    line = rng.choice(
        [b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 999 X", b"HTTP/1.1 000 X", b"HTTP/1.1 20 OK",
         b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"RTSP/1.0 200 OK", b"HTTP/1.1  200 OK",
         b"HTTP/1.1 302 Found", b"HTTP/1.1 206 Partial", b"HTTP/1.1 500 Oops", b"HTTP/1.1 429 Slow", b"ICY 200 OK"]
    )  # fmt: skip
    return line + data[data.index(b"\r\n") :]


def _folded(data: bytes, rng: random.Random) -> bytes:
    at = data.index(b"\r\n") + 2
    extra = rng.choice([b"x-a: b\r\n folded\r\n", b" leading: x\r\n", b"content-type: text/event-stream\r\n\tmore\r\n",
                        b"x y: z\r\n", b"content-length : 3\r\n", b"no-colon\r\n", b": empty\r\n", b"x-a:\r\n \r\n"])  # fmt: skip
    return data[:at] + extra + data[at:]


def _trailers(data: bytes, rng: random.Random) -> bytes:
    whole = base_stream(rng)[:-2]
    extra = rng.choice(
        [b"x-sum: 1\r\n", b"content-length: 3\r\n", b"x: y\n", b" x\r\n", b"a: b\r\nc: d\r\n", b"transfer-encoding: chunked\r\n"]
    )
    return whole + extra + b"\r\n" + rng.choice([b"", b"\r\n"])


def _extensions(data: bytes, rng: random.Random) -> bytes:
    extra = rng.choice([b";a", b";a=b", b';a="b;\\"c"', b";" + b"x" * 10_000, b";\n", b";a=b\n", b" ;a", b';a="\r\n"'])
    body = event(0, "w")
    return SSE + b"%x%b\r\n%b\r\n" % (len(body), extra, body) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _false_boundary(data: bytes, rng: random.Random) -> bytes:
    """Cut inside a chunk, right where its content looks like the end of a chunk."""
    inner = b"data: 1\n\n\r\ndata: 2\n\n"
    return SSE + (chunk(event(0, "v")) + chunk(inner))[: -len(b"data: 2\n\n\r\n")]


def _done_then_cut(data: bytes, rng: random.Random) -> bytes:
    return SSE + chunk(event(0, "u")) + chunk(b"data: [DONE]\n\n")


def _random_bytes(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 400))


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    name.strip("_"): function
    for name, function in list(globals().items())
    if name.startswith("_")
    and callable(function)
    and name not in ("_head_of",)
    and getattr(function, "__module__", "") == __name__
}


def make_case(index: int, seed: int) -> Case:
    """Case `index` of a seeded series: kinds in turn; every offset of an early close comes up in order."""
    rng = random.Random(seed * 1_000_003 + index)
    names = list(MUTATIONS)
    kind = names[index % len(names)]
    base = base_stream(rng) if rng.random() < 0.6 else base_json(rng)
    if kind == "cut":
        base = base_stream(random.Random(seed)) if (index // len(names)) % 2 else base_json(random.Random(seed))
        data = base[: (index // len(names) // 2) % len(base)]
    else:
        data = MUTATIONS[kind](base, rng)
    count = rng.choice([0, 0, 1, 2, 3])
    cuts = [rng.randrange(len(data) + 1) for _ in range(count)]
    if kind in ("false_boundary", "done_then_cut", "two_responses") and rng.random() < 0.5:
        cuts = [max(0, len(data) - rng.randint(0, 20))]
    ending = rng.choice(["close", "close", "close", "close", "reset"]) if kind != "valid" or rng.random() < 0.1 else "open"
    if kind not in ("valid", "cut") and rng.random() < 0.005:
        ending = "open"
    return Case(kind, data, cuts, ending)
