"""YAML as people mean it, read within bounds: from whatever lies at the path, and whatever an alias makes of a few lines."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

_LONGEST_FILE = 4 * 1024 * 1024
"""Bytes. Ten thousand keys with all their scopes are less."""
_MOST_VALUES = 500_000
"""Values in a document, those under an alias counted wherever it stands."""
_DEEPEST = 100
_LONGEST_NUMBER = 400
_MERGE = "tag:yaml.org,2002:merge"
"""`<<: *anchor`, which may name what is given here anew."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_bounded(path: Path) -> str:
    """The text of a file that a person names; a pipe will do, too.

    Raises:
        OSError: it cannot be read, or holds more than 4 MiB.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open("rb") as file:
        return _decode(file.read(_LONGEST_FILE + 1))


def read_watched(path: Path) -> str:
    """The text of a file that a process reads whenever it changes, and must not wait for.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe would have the process wait for its other end), or holds more
            than 4 MiB.
        UnicodeDecodeError: it is not UTF-8.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return _decode(file.read(_LONGEST_FILE + 1))


def _decode(data: bytes) -> str:
    if len(data) > _LONGEST_FILE:
        raise OSError(errno.EFBIG, f"it holds more than {_LONGEST_FILE // 1024 // 1024} MiB")
    return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def parse_yaml(text: str) -> Any:
    """What a YAML text holds, every key given once.

    Raises:
        yaml.YAMLError: it is not YAML, gives a key twice, or its aliases make it too large.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    _check_size(document)
    return document


class _Loader(yaml.SafeLoader):
    """A key given twice is an error, not a silent last-wins, and so is a value that is none of its kind."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(str(node.value)) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="a number as long as this cannot be read", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, TypeError) as error:  # PyYAML's own for 2026-02-30 and the like
            raise yaml.MarkedYAMLError(problem=f"this cannot be read: {error}", problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem="a list or a mapping cannot be a key", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key}` is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES // 10:  # before the next merge multiplies it
            raise yaml.MarkedYAMLError(problem="this merges too many keys", problem_mark=node.start_mark)


def _check_size(document: Any) -> None:
    """Refuse what is small as a text and huge, or endless, once somebody walks through it.

    Raises:
        yaml.YAMLError: it is.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of a container, by identity: values in it, and levels below it
    pending: list[tuple[Any, bool]] = [(document, False)]
    open_containers: set[int] = set()
    while pending:
        value, inside_is_known = pending.pop()
        if not isinstance(value, dict | list) or id(value) in sizes:
            continue
        inside = list(value.values()) if isinstance(value, dict) else value
        if not inside_is_known:
            if id(value) in open_containers:
                raise yaml.YAMLError("an alias stands inside of what it names")
            open_containers.add(id(value))
            pending.append((value, True))
            pending.extend((item, False) for item in inside if isinstance(item, dict | list))
            continue
        open_containers.discard(id(value))
        parts = [sizes[id(item)] if isinstance(item, dict | list) else (1, 0) for item in inside]
        sizes[id(value)] = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if sizes[id(value)][0] > _MOST_VALUES:
            raise yaml.YAMLError("its aliases make it too large")
        if sizes[id(value)][1] > _DEEPEST:
            raise yaml.YAMLError("it is nested too deep")
