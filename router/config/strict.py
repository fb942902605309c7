"""What all parts of the configuration have in common: nothing unknown passes, nothing changes later."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,127}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class ConfigError(ValueError):
    """The configuration cannot be used. The text names the file's key and says what to do."""


class Strict(BaseModel):
    """A block of the configuration: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
