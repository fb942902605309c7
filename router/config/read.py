"""Reading a configuration: from a file or a mapping to a valid `Config`, or to an error that says which key is wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from router.config.check import nearest
from router.config.schema import RECORDED, Config
from router.config.strict import ConfigError, unusable
from router.config.yaml_text import parse_yaml, read_bounded

_MOST_PROBLEMS = 20


def parse_config(data: Any, origin: str = "config") -> Config:
    """Validate a mapping.

    Args:
        data: the mapping, as YAML gives it.
        origin: the file's name, for messages.

    Raises:
        ConfigError: names every offending key, the nearest valid one for a typo, and what is expected.
    """
    return _parse(data, origin, {})


def parse_recorded(data: Any, origin: str) -> Config:
    """The same for a configuration that a router ran under, according to its audit log: what earlier versions took, and this one
    does not start with, is read.

    Raises:
        ConfigError: this version does not understand it.
    """
    return _parse(data, origin, RECORDED)


def _parse(data: Any, origin: str, context: dict[str, bool]) -> Config:
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected a mapping, got {type(data).__name__}")
    if wrong := [f"{origin}: {_place(place)}: {message}" for place, message in islice(unusable(data), _MOST_PROBLEMS)]:
        raise ConfigError("\n".join(wrong))
    try:
        return Config.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in explain(error))) from None


_MAPPING = "expected a mapping: lines of `name: value`, or {name: value}"
_SHAPES = {
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "list_type": "expected a list: lines that begin with `- `, or [a, b]",
    "missing": "this key is required",
}
"""What is said, in words of YAML, in place of pydantic's own."""


def explain(error: ValidationError) -> list[str]:
    """What a validation found, a line for each problem up to twenty: the key, the nearest valid one, and what is expected."""
    problems = error.errors(include_url=False, include_input=False)
    more = len(problems) - _MOST_PROBLEMS
    return [_explain(problem) for problem in problems[:_MOST_PROBLEMS]] + [f"and {more} more problems"] * (more > 0)


def _place(path: Sequence[str | int]) -> str:
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place


def _explain(problem: Any) -> str:
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, wrong = problem["loc"]
        valid = _valid_keys(parents)
        return f"unknown key `{place}`{nearest(str(wrong), valid)}"
    message = _SHAPES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _valid_keys(path: list[Any]) -> set[str]:
    model: Any = Config
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = _model_inside(field.annotation)
    return set(getattr(model, "model_fields", {}))


def _model_inside(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_inside(argument)
        if found is not None:
            return found
    return None


def load_file(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: missing, not YAML, a key given twice, or not a valid configuration.
    """
    return parse_config(read_args(path), str(path))


def read_args(path: Path) -> Any:
    """The mapping a configuration file holds: the `args` of the tidegate application, or the bare mapping.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    return read_layers(path)[0]


def read_layers(path: Path) -> tuple[Any, Any]:
    """The same, and the `user_config` that the file has Ray Serve hand to the routers; None where it has none.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    try:
        data = parse_yaml(read_bounded(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("applications"), list):
        for application in data["applications"]:
            if isinstance(application, dict) and str(application.get("import_path", "")).startswith("deployments"):
                return application.get("args") or {}, _user_config(application.get("deployments"))
        raise ConfigError(f"{path}: no application imports `deployments.app:build`")
    return data, None


def _user_config(deployments: Any) -> Any:
    for deployment in deployments if isinstance(deployments, list) else ():
        if isinstance(deployment, dict) and deployment.get("name") == "router":
            return deployment.get("user_config")
    return None


def home() -> Path:
    """The directory relative paths start from: `TIDEGATE_HOME`, else the checkout this package lies in, else `~/.tidegate`."""
    if configured := os.environ.get("TIDEGATE_HOME"):
        return Path(configured).resolve()
    checkout = Path(__file__).resolve().parent.parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.home() / ".tidegate"


def epoch_of(config: Config) -> str:
    """The policy epoch: the first 16 hex digits of the SHA-256 of the configuration in canonical JSON."""
    return digest_of(config)[:16]


def digest_of(config: Config) -> str:
    """The SHA-256 of the configuration in canonical JSON, in hex."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()
