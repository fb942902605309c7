"""What vLLM is told of adapters, and what is refused before it starts."""

from __future__ import annotations

import json
import struct

import pytest

from deployments.adapters import adapter_arguments
from router.config import ConfigError, Model


@pytest.fixture
def base(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": 64}))
    return tmp_path


def add(base, name, rank=8, width=64, **settings):
    folder = base / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "base_model_name_or_path": "org/base", **settings}))
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": {"shape": [rank, 999]},
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"shape": [rank, width]},
        }
    ).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return {"id": name, "source": name}


def arguments(base, adapters, *args):
    model = Model(id="m", source="model", args=list(args), adapters=adapters, replicas=[{"zone": "eu"}])
    return adapter_arguments(model, str(base / "model"), base)


def test_a_model_without_adapters_is_told_nothing(base):
    assert arguments(base, []) == []


def test_names_paths_slots_and_rank_are_told(base):
    told = arguments(base, [add(base, "law"), add(base, "med", rank=48), {"id": "far", "source": "org/far"}])
    assert told[:2] == ["--enable-lora", "--lora-modules"]
    modules = [json.loads(text) for text in told[2:5]]
    assert [module["name"] for module in modules] == ["law", "med", "far"]
    assert modules[0] == {"name": "law", "path": str(base / "law"), "base_model_name": "m"} and modules[2]["path"] == "org/far"
    assert told[5:] == ["--max-loras", "3", "--max-lora-rank", "64"]


def test_the_users_own_bounds_stay(base):
    told = arguments(base, [add(base, "law")], "--max-loras", "2", "--max-lora-rank", "128")
    assert "--max-loras" not in told and "--max-lora-rank" not in told


@pytest.mark.parametrize("argument", ["--lora-modules", "--lora_modules", "--enable-lora", "--no-enable-lora", "--enable-lora=1"])
def test_arguments_that_say_it_again_are_refused(base, argument):
    with pytest.raises(ConfigError, match="beside `adapters`"):
        arguments(base, [add(base, "law")], argument)


def test_an_adapter_of_another_base_model_is_refused_before_anything_starts(base):
    with pytest.raises(ConfigError, match=r"`law` is made for org/base, whose hidden size is 128; this model's is 64"):
        arguments(base, [add(base, "law", width=128)])


def test_an_adapter_without_its_files_or_with_nonsense_in_them_is_refused(base):
    (base / "empty").mkdir()
    with pytest.raises(ConfigError, match="adapter_config"):
        arguments(base, [{"id": "empty", "source": "empty"}])
    with pytest.raises(ConfigError, match="no rank"):
        arguments(base, [add(base, "odd", rank="many")])
    broken = add(base, "broken")
    (base / "broken" / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="no safetensors"):
        arguments(base, [broken])
    with pytest.raises(ConfigError, match="there is no model at"):
        arguments(base, [{"id": "gone", "source": "./gone"}])
    with pytest.raises(ConfigError, match="below the rank 32"):
        arguments(base, [add(base, "wide", rank=32)], "--max-lora-rank", "16")
