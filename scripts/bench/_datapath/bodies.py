"""The cases: what is asked, and the request bodies that ask it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

KEY = "tg-bench-0123456789abcdef0123456789abcdef"
"""The client's key. Every system gets it, so that all read the same bytes; tidegate checks it."""
MODEL = "mock"
PATH = "/v1/chat/completions"
POOL = 64
"""Different prompts a case cycles through, so that a prefix cache sees conversations and not one string."""
_VOCABULARY = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no water tide gate harbour ship "
    "sea river bank letter doctor patient report question answer system value number point side hand part place"
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True)
class Case:
    """One kind of request."""

    name: str
    tokens: int
    stream: bool = False
    model: str = MODEL
    only: str | None = None
    """The one system this case makes sense for."""
    targets: int | None = None
    """Engines behind the system; None: as many as the run's first number says."""
    like: str | None = None
    """The case with the same prompts that the others' figures are read from, where they take no part in this one."""

    @property
    def base(self) -> str:
        """The case's name without the number of targets."""
        return self.name.partition("@")[0]

    @property
    def compared(self) -> str:
        """The name of the case that holds what others do with the same prompts: mostly its own."""
        return self.name if self.like is None else self.name.replace(self.base, self.like, 1)


CASES = {
    case.name: case
    for case in (
        Case("json", 500),
        Case("json-auto", 500, model="auto", only="tidegate", like="json"),
        Case("json-20", 20),
        Case("json-4000", 4000),
        Case("json-32000", 32000),
        Case("sse64", 500, stream=True),
    )
}


def find(name: str) -> Case:
    """The case of a name: one of `CASES`, or `json@256`, the same with 256 engines behind the system.

    Raises:
        KeyError: there is no such case.
    """
    base, _, targets = name.partition("@")
    return replace(CASES[base], name=name, targets=int(targets)) if targets else CASES[base]


def body(case: Case, seed: int) -> bytes:
    """One request body: a system prompt that all share (a quarter of the tokens), and a text of its own.

    A token is counted as one common word with its blank, about 4.3 bytes.
    """
    shared = case.tokens // 4
    system = " ".join(random.Random(0).choices(_WORDS, k=max(1, shared)))
    user = " ".join(random.Random(seed + 1).choices(_WORDS, k=max(1, case.tokens - shared)))
    data: dict[str, object] = {
        "model": case.model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": f"{seed}: {user}"}],
        "max_tokens": 64,
        "temperature": 0.7,
    }
    if case.stream:
        data["stream"] = True
    return json.dumps(data).encode()


def write_pool(case: Case, folder: Path, prompts: int = POOL) -> Path:
    """Write the case's bodies, one a line, and return the file."""
    path = folder / f"{case.base}.jsonl"
    path.write_bytes(b"\n".join(body(case, seed) for seed in range(prompts)) + b"\n")
    return path
