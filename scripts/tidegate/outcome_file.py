"""Reading outcome data: questions with the scores of a small and of a large model, from a CSV or from JSON lines.

All or nothing: the first line that is not what it should be is named, and nothing of the file is used. What a message quotes is
a line's number and a column's name, never what stands in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIELDS = ("prompt", "small", "large")
_OTHER_NAMES = {"weak_correct": "small", "strong_correct": "large"}
"""RouteLLM's names of the scores."""
_LONGEST = 8 * 1024 * 1024


class EvalError(ValueError):
    """The data cannot be evaluated; the text says which file and line."""


@dataclass(frozen=True)
class Outcome:
    """One question with both scores, 0..1."""

    prompt: str
    small: float
    large: float


def read_outcomes(path: Path) -> list[Outcome]:
    """Rows of a CSV or of JSON lines with `prompt`, `small`, `large` (or `weak_correct`, `strong_correct`).

    Raises:
        EvalError: the file cannot be read, a column is missing, or a score is no number in 0..1.
    """
    outcomes = []
    for where, row in read_rows(path):
        named = {_OTHER_NAMES.get(name, name): value for name, value in row.items()}
        missing = [name for name in FIELDS if named.get(name) is None]
        if missing:
            raise EvalError(f"{where}: a row needs {', '.join(FIELDS)}; {', '.join(missing)} is missing")
        prompt = named["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise EvalError(f"{where}: `prompt` is a text that is not empty")
        outcomes.append(Outcome(prompt, read_score(named["small"], "small", where), read_score(named["large"], "large", where)))
    if not outcomes:
        raise EvalError(f"{path}: there are no rows")
    return outcomes


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Every row with the place it ends at.

    Raises:
        EvalError: the file cannot be read, or a line is neither CSV nor JSON.
    """
    text = _read_text(path)
    return _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)


def read_score(value: object, name: str, where: str) -> float:
    """A score.

    Raises:
        EvalError: it is no number from 0 to 1.
    """
    try:
        if isinstance(value, str):
            value = value.replace(",", ".")
        score = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        score = float("nan")
    if not 0 <= score <= 1:
        raise EvalError(f"{where}: `{name}` is a score, a number from 0 to 1")
    return score


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvalError(f"{path}:{_line_of(data, error.start)}: this line is not UTF-8") from None
    if (place := data.find(b"\0")) >= 0:
        raise EvalError(f"{path}:{_line_of(data, place)}: there is a zero byte in this line")
    return text


def _line_of(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    before = csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator_of(text), strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise EvalError(f"{path}:1: a column is there twice")
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise EvalError(f"{path}:{reader.line_num}: {len(row)} columns where the first line has {len(names)}")
            yield f"{path}:{reader.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise EvalError(f"{path}:{reader.line_num}: this is no CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _separator_of(text: str) -> str:
    """What stands between the names of the columns: a comma, or what Excel writes where a comma is the decimal sign."""
    names = text.split("\n", 1)[0]
    return max(",;\t", key=names.count)


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):  # not `splitlines`: a text may have other ends of lines in it
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise EvalError(f"{path}:{number}: this line is no JSON") from None
        if not isinstance(row, dict):
            raise EvalError(f"{path}:{number}: this line is no JSON object")
        yield f"{path}:{number}", row
