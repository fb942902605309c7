"""A deliberately worse model, made from a good one: some of its layers left out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

DROPPED = (20,)
"""Of SmolLM2-135M's 30 layers. Without this one it is right about half as often, and still speaks English."""
_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")


def without_layers(source: Path, target: Path, dropped: tuple[int, ...] = DROPPED) -> Path:
    """Copy a model of one safetensors file to `target` without some of its layers; what is there already is used again."""
    if (target / "complete").is_file():
        return target
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "model.safetensors.index.json":
            shutil.copy(file, target / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kept = [layer for layer in range(config["num_hidden_layers"]) if layer not in dropped]
    config["num_hidden_layers"] = len(kept)
    if config.get("layer_types"):
        config["layer_types"] = [config["layer_types"][layer] for layer in kept]
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    with safe_open(source / "model.safetensors", framework="pt") as whole:
        for name in whole.keys():  # noqa: SIM118 - not a mapping
            found = _LAYER.match(name)
            if found is None:
                tensors[name] = whole.get_tensor(name)
            elif int(found[2]) in kept:
                tensors[f"{found[1]}{kept.index(int(found[2]))}{found[3]}"] = whole.get_tensor(name)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "complete").touch()
    return target
