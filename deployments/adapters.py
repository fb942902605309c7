"""LoRA adapters of an engine: looked at before vLLM starts, because its own message comes minutes later."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.vllm_command import resolve_source
from deployments.vllm_options import option
from router.config import ConfigError, Model

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""
_DEFAULT_RANK = 16
_MOST_SLOTS = 8
"""Adapters applied at once by default: each slot takes GPU memory."""
_LARGEST_HEADER = 64 * 2**20
_READS_HIDDEN = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "gate_proj", "up_proj")
"""Projections that read the hidden state: the width of their `lora_A` is the base model's hidden size."""


def adapter_arguments(model: Model, source: str, base: Path | None = None) -> list[str]:
    """What vLLM is told of a model's adapters; nothing for a model without.

    Args:
        model: the configuration's model.
        source: what `resolve_source` made of its own source.
        base: where relative paths start; TIDEGATE_HOME by default.

    Raises:
        ConfigError: an adapter is not there, cannot be read, is made for another model, or the user's arguments contradict.
    """
    if not model.adapters:
        return []
    where = f"models: `{model.id}`"
    for name in ("lora-modules", "enable-lora", "no-enable-lora"):
        if any(argument.partition("=")[0].replace("_", "-") == f"--{name}" for argument in model.args):
            raise ConfigError(
                f"{where}: args: `--{name}` cannot be given beside `adapters`, which says it all. Remove one of them."
            )
    modules, ranks = [], [_DEFAULT_RANK]
    for adapter in model.adapters:
        path = resolve_source(adapter.source, base)
        if Path(path).is_absolute():
            ranks.append(_check(f"{where}: adapters: `{adapter.id}`", Path(path), Path(source)))
        modules.append(json.dumps({"name": adapter.id, "path": path, "base_model_name": model.id}))
    arguments = ["--enable-lora", "--lora-modules", *modules]
    if option(model.args, "max-loras") is None:
        arguments += ["--max-loras", str(min(len(modules), _MOST_SLOTS))]
    given = option(model.args, "max-lora-rank")
    needed = max(ranks)
    if given is None:
        arguments += ["--max-lora-rank", str(next((rank for rank in _RANKS if rank >= needed), needed))]
    elif given.isdigit() and int(given) < max(ranks[1:], default=0):
        raise ConfigError(f"{where}: args: `--max-lora-rank {given}` is below the rank {max(ranks[1:])} of an adapter")
    return arguments


def _check(where: str, path: Path, model: Path) -> int:
    """The rank of an adapter in a directory, once it is known to fit the model."""
    settings = _read_json(path / "adapter_config.json", where, "an adapter's directory has `adapter_config.json`")
    rank = settings.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"{where}: {path / 'adapter_config.json'} has no rank (`r`): this is no LoRA adapter")
    weights = path / "adapter_model.safetensors"
    if not weights.is_file() or not (model / "config.json").is_file():
        return rank
    about = _read_json(model / "config.json", where, "the model's directory has `config.json`")
    hidden = about.get("hidden_size") or (about.get("text_config") or {}).get("hidden_size")
    width = _width(_shapes(weights, where))
    if hidden and width and width != hidden:
        made_for = settings.get("base_model_name_or_path") or "another model"
        raise ConfigError(
            f"{where} is made for {made_for}, whose hidden size is {width}; this model's is {hidden}. Give it to its own model."
        )
    return rank


def _read_json(path: Path, where: str, expected: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot read {path}: {error}; {expected}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {path} holds no object; {expected}")
    return found


def _shapes(path: Path, where: str) -> dict[str, list[int]]:
    """The tensors of a safetensors file and their shapes: its header alone is read."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        return {name: list(about["shape"]) for name, about in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ConfigError(f"{where}: {path} is no safetensors file: {error}") from None


def _width(shapes: dict[str, Sequence[int]] | dict[str, list[int]]) -> int:
    """The hidden size an adapter was made for, 0 where no tensor tells."""
    for name, shape in shapes.items():
        parts = name.split(".")
        if "lora_A" in parts and len(shape) == 2 and any(part in _READS_HIDDEN for part in parts):
            return int(shape[1])
    return 0
