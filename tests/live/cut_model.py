"""A model with most of its layers cut away: it answers nonsense, several times faster, through the very same server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def cut_model(source: Path, target: Path, layers: int = 4) -> Path:
    """Copy a model of one safetensors file to `target`, keeping only its first `layers` layers.

    Args:
        source: directory of the whole model.
        target: directory to make.
        layers: how many transformer layers to keep.

    Returns:
        `target`.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "model.safetensors.index.json":
            shutil.copy(file, target / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # Newer transformers also write one entry per layer.
    kinds = {"layer_types": config["layer_types"][:layers]} if config.get("layer_types") else {}
    changed = {**config, **kinds, "num_hidden_layers": layers}
    (target / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    with safe_open(source / "model.safetensors", framework="pt") as whole:
        kept = [name for name in whole.keys() if (found := _LAYER.search(name)) is None or int(found[1]) < layers]  # noqa: SIM118
        save_file({name: whole.get_tensor(name) for name in kept}, target / "model.safetensors", metadata={"format": "pt"})
    return target
