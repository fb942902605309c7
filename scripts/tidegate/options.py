"""`tidegate options`: what a configuration may say, read from the classes that validate it."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router.config import Config
from router.config.check import nearest
from tidegate.terminal import Console

console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", types.NoneType: "null"}


class Option:
    """One option: its place (`keys[].cidr`, `zones.NAME.external`), the kind of its value, its default, and what it is for."""

    def __init__(self, place: str, field: FieldInfo, text: str) -> None:
        self.place = place
        self.kind = kind_of(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        self.default = "required" if field.is_required() else "" if _is_empty(default) else f"default {_in_yaml(default)}"
        self.text = text

    @property
    def lines(self) -> list[str]:
        """As it is printed."""
        head = "   ".join(part for part in (self.place, self.kind, self.default) if part)
        return [head, *textwrap.wrap(self.text, 110, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)]


def options(
    name: Annotated[str, typer.Argument(help="An option or a block, such as targets.tls; default: all of them.")] = "",
) -> None:
    """Say what a configuration may hold: each option with its kind, its default, and what it is for."""
    every = list(every_option(Config))
    wanted = [option for option in every if not name or f"{_plain(option.place)}.".startswith(f"{_plain(name)}.")]
    if not wanted:
        errors.print(f"error: there is no option `{name}`{nearest(_plain(name), {_plain(option.place) for option in every})}")
        raise typer.Exit(1)
    for option in wanted:
        console.print("\n".join(option.lines))


def every_option(model: type[BaseModel], place: str = "") -> Iterator[Option]:
    """The options of a block and of the blocks in it, in the order in which they are declared."""
    texts = _texts(model)
    for name, field in model.model_fields.items():
        here = f"{place}.{name}" if place else name
        inner, around = _block_in(field.annotation)
        own = inspect.cleandoc(inner.__doc__ or "") if inner is not None else ""
        yield Option(here, field, " ".join((texts.get(name) or own).split()))
        if inner is not None:
            yield from every_option(inner, here + around)


def kind_of(annotation: Any) -> str:
    """The kind of value that an annotation stands for, in words."""
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(part) for part in arguments if part is not types.NoneType))
    if origin is list:
        return f"list of {kind_of(arguments[0])}"
    if origin is dict:
        return f"names, each with {kind_of(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "block"
    return _PLAIN.get(annotation, "value")


def _block_in(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The block that a value holds, if any, and what stands between its place and that of the block's own options."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, ""
    around = {list: "[]", dict: ".NAME"}.get(get_origin(annotation) or object, "")
    for argument in get_args(annotation):
        inner, more = _block_in(argument)
        if inner is not None:
            return inner, around + more
    return None, ""


@cache
def _texts(model: type[BaseModel]) -> dict[str, str]:
    """What stands under each field of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, BaseModel) or parent is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = str(ast.literal_eval(text.value))
    return found


def _is_empty(default: object) -> bool:
    return default is None or default in ("", [], {}) or isinstance(default, BaseModel)


def _in_yaml(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"[{', '.join(map(str, default))}]" if isinstance(default, list) else str(default)


def _plain(place: str) -> str:
    """A place as it may be asked for: without what stands for the entries of lists and for names."""
    return ".".join(part.removesuffix("[]") for part in place.split(".") if part != "NAME")
