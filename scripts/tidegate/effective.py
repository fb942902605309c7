"""The configuration that is really served: the file's, with what the command line and the machine change."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router.config import Config, ConfigError, parse_config, read_args
from tidegate.home import Home, write_private

IMPORT_PATH = "deployments.app:build"


@dataclass(frozen=True)
class Overrides:
    """What replaces a value of the file; None keeps the file's."""

    model: str | None = None
    port: int | None = None
    admin_port: int | None = None
    gpus: float | None = None
    """GPUs of each engine whose entry says 0."""

    @property
    def any(self) -> bool:
        """Whether anything is replaced."""
        return self != Overrides()


@dataclass(frozen=True)
class Effective:
    """A validated configuration, and the Serve document to write for it (None: its own file is what is served)."""

    source: Path
    config: Config
    document: dict[str, Any] | None


def read_effective(path: Path, overrides: Overrides) -> Effective:
    """Read a configuration and apply the overrides; nothing is written.

    Raises:
        ConfigError: the file, or the result of the overrides, is not a valid configuration.
    """
    args = read_args(path)
    config = parse_config(args, str(path))  # reports errors of the file as the file's
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    is_serve_config = "applications" in whole
    if is_serve_config and not overrides.any:
        return Effective(path, config, None)
    changed = apply_overrides(args, overrides)
    document = whole if is_serve_config else _serve_document()
    for application in document["applications"]:
        if str(application.get("import_path", "")).startswith("deployments"):
            application["args"] = changed
    return Effective(path, parse_config(changed, f"{path} with the options given"), document)


def zones_of_engines(config: Config) -> list[str]:
    """The zones that engines are configured in, sorted."""
    return sorted({part.zone for model in config.models for part in model.replicas})


def only_zone(config: Config, zone: str) -> Config:
    """The configuration with the engines of one zone only; its other parts stay."""
    models = [
        model.model_copy(update={"replicas": [part for part in model.replicas if part.zone == zone]}) for model in config.models
    ]
    return config.model_copy(update={"models": models})


def write_effective(home: Home, effective: Effective) -> Path:
    """The file `serve run` gets: the configuration itself, or `.tidegate/effective.yaml`, written now."""
    if effective.document is None:
        return effective.source
    header = f"# Made by `tidegate up` from {effective.source}; changes here are overwritten.\n"
    write_private(home.effective_config, header + yaml.safe_dump(effective.document, sort_keys=False))
    return home.effective_config


def apply_overrides(args: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of the `args` mapping with the overrides in it.

    Raises:
        ConfigError: `--model` was given but the configuration has no model to replace.
    """
    changed = copy.deepcopy(args)
    if overrides.model is not None:
        if not changed.get("models"):
            raise ConfigError("--model replaces the source of the first of `models`, but the configuration has none")
        changed["models"][0]["source"] = _source(overrides.model)
    if overrides.port is not None:
        changed.setdefault("listen", {})["port"] = overrides.port
    if overrides.admin_port is not None:
        changed.setdefault("admin", {"host": "127.0.0.1"})["port"] = overrides.admin_port
    if overrides.gpus is not None:
        for model in changed.get("models", []):
            for replicas in model["replicas"]:
                if replicas.get("gpus", 1) == 0:
                    replicas["gpus"] = overrides.gpus
    return changed


def _source(model: str) -> str:
    """A directory as an absolute path (the engine starts elsewhere); a model id as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _serve_document() -> dict[str, Any]:
    application: dict[str, Any] = {"name": "tidegate", "route_prefix": None, "import_path": IMPORT_PATH, "args": {}}
    return {"proxy_location": "Disabled", "applications": [application]}
