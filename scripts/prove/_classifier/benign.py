"""Hard negatives: what looks like an identifier and is none. Made from a seed."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable


def _d(r: random.Random, n: int) -> str:
    return "".join(r.choice("0123456789") for _ in range(n))


def _isbn(r: random.Random) -> str:
    body = "978" + _d(r, 9)
    check = -sum(int(c) * (1 if i % 2 == 0 else 3) for i, c in enumerate(body)) % 10
    value = body + str(check)
    return f"{value[:3]}-{value[3]}-{value[4:7]}-{value[7:12]}-{value[12]}" if r.random() < 0.6 else value


BENIGN: dict[str, Callable[[random.Random], str]] = {
    "order": lambda r: r.choice([_d(r, 8), _d(r, 10), _d(r, 12), f"{_d(r, 3)}-{_d(r, 7)}-{_d(r, 7)}", f"PO-{_d(r, 7)}"]),
    "version": lambda r: r.choice(
        [f"{r.randint(1, 20)}.{r.randint(0, 30)}.{r.randint(0, 99)}", f"10.0.{r.randint(10000, 29999)}.{r.randint(1, 4000)}"]
    ),
    "isbn": _isbn,
    "timestamp": lambda r: r.choice(
        [
            f"20{r.randint(15, 26)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}T{r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}Z",
            str(r.randint(1_500_000_000, 1_790_000_000)),
            str(r.randint(1_500_000_000_000, 1_790_000_000_000)),
        ]
    ),
    "uuid": lambda r: str(uuid.UUID(bytes=r.randbytes(16), version=4)),
    "git": lambda r: r.choice([r.randbytes(20).hex(), r.randbytes(4).hex()[:7]]),
    "product": lambda r: r.choice(
        [
            f"{r.choice('ABCDX')}{r.choice('KLMN')}-{_d(r, 4)}-{_d(r, 3)}",
            f"{_d(r, 6)}-{r.choice('ABC')}{_d(r, 2)}",
            f"{''.join(r.choice(string.ascii_uppercase) for _ in range(3))}{_d(r, 5)}",
        ]
    ),
    "part_like_phone": lambda r: r.choice(
        [f"800-{_d(r, 3)}-{_d(r, 4)}", f"{_d(r, 3)}.{_d(r, 4)}.{_d(r, 2)}", f"0{_d(r, 3)}-{_d(r, 6)}"]
    ),
    "amount": lambda r: r.choice(
        [
            f"{r.randint(1, 999)}.{_d(r, 3)}.{_d(r, 3)}",
            f"{r.randint(1, 999)},{_d(r, 3)},{_d(r, 3)}.{_d(r, 2)}",
            f"{r.randint(100000, 9999999)}",
        ]
    ),
    "coordinates": lambda r: f"{r.randint(-80, 80)}.{_d(r, 6)}, {r.randint(-170, 170)}.{_d(r, 6)}",
    "pi": lambda r: r.choice(["3.14159265358979", "2.718281828459045", "6.02214076e23", "299792458"]),
    "local_address": lambda r: r.choice(["127.0.0.1:8080", "192.168.1.20", "10.0.0.12", "0.0.0.0", "::1"]),  # noqa: S104 - examples in text
    "log_line": lambda r: f"[{r.randint(1, 99)}.{_d(r, 6)}] eth0: rx={_d(r, 9)} tx={_d(r, 9)} err=0",
    "placeholder": lambda r: r.choice(
        [
            "api_key = 'YOUR_API_KEY_HERE'",
            "token: <your-token>",
            "export OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxx",
            "password: ********",
            "AKIAIOSFODNN7EXAMPLE",
        ]
    ),
    "tracking": lambda r: r.choice(
        [f"1Z{''.join(r.choice(string.ascii_uppercase + string.digits) for _ in range(16))}", _d(r, 12), _d(r, 20)]
    ),
}
