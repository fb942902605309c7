"""Messages from templates and makers: each knows what sensitive values it holds and where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

Maker = Callable[[random.Random], str]


class Message(NamedTuple):
    """A message. `kind` names the maker; `span` is where its value stands, None for a hard negative."""

    text: str
    kind: str
    span: tuple[int, int] | None


def messages(
    templates: Mapping[str, tuple[str, ...]], makers: Mapping[str, Maker], count: int, seed: str, sensitive: bool
) -> Iterator[Message]:
    """`count` messages, evenly over the kinds.

    Args:
        templates: wordings by kind, each with one `{}`.
        makers: values by kind.
        count: how many.
        seed: any text.
        sensitive: whether the values are to be found.
    """
    r = random.Random(seed)
    kinds = sorted(templates)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        template = templates[kind][i // len(kinds) % len(templates[kind])]
        value = makers[kind](r)
        at = template.index("{}")
        yield Message(template.replace("{}", value, 1), kind, (at, at + len(value)) if sensitive else None)
