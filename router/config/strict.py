"""What all parts of the configuration have in common: nothing unknown passes, nothing changes later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from router.legible import legible, shortened

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,127}\Z")
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
"""What no name, path or address can hold: the end of a C string, and halves of a character that stand alone."""
_LARGEST = 2**63
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_LONGEST_LINE = 2000


class ConfigError(ValueError):
    """The configuration cannot be used. The text names the file's key and says what to do.

    It goes to terminals, logs and an alert, so what it quotes of the file is made legible and cut.
    """

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(shortened(legible(line), _LONGEST_LINE) for line in text.split("\n")))


class Strict(BaseModel):
    """A block of the configuration: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        """`share: yes` is nobody's wish for a share of 1."""
        if isinstance(value, bool) and about.field_name is not None:
            types = set(_types_in(cls.model_fields[about.field_name].annotation))
            if bool not in types and types & {int, float}:
                raise ValueError("use a number, not yes or no")
        return value


def _types_in(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _types_in(part)


def unusable(data: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a mapping, as YAML gives it, has values that no key of the configuration takes: the place, and what is wrong.

    Types let them through, and they end in an exception of some library, long after the place they stand in is known.
    """
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    seen: set[int] = set()
    while pending:
        place, value = pending.pop()
        if isinstance(value, str) and (found := _NO_TEXT.search(value)):
            yield place, f"this text has the character U+{ord(found.group()):04X} in it, which nothing here can"
        elif isinstance(value, int | float) and not -_LARGEST < value < _LARGEST:
            yield place, "a number that is too large, or none at all"
        elif isinstance(value, dict | list) and id(value) not in seen:  # an anchor may stand in many places, or in itself
            seen.add(id(value))
            for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
                bare = isinstance(key, str) and _NO_TEXT.search(key) is None
                if isinstance(key, str) and not bare:
                    yield (*place, ascii(key)), "this key has a character in it that nothing here can"
                pending.append(((*place, key if bare or isinstance(key, int) else ascii(key)), inside))


def check_name(value: str) -> str:
    """The value, if it can be a name.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.match(value):
        raise ValueError("use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    return value


def check_model(value: str) -> str:
    """The value, if it can be a model id.

    Raises:
        ValueError: it cannot.
    """
    if not _MODEL.match(value):
        raise ValueError("use 1 to 128 of A-Z a-z 0-9 . _ / : @ - and begin with a letter or digit")
    return value


Name = Annotated[str, Field(min_length=1, max_length=64)]
