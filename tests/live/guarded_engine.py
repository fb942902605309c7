"""One real vLLM behind the guard, as a replica starts it; and one whose arguments vLLM does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.vllm_process import EnginePlan, VllmProcess
from router.config import Model
from router.residency.guard import Place, derive_target_key
from tests.live.starting import Starting

ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "16"]
INCARNATION = "live-engine-1"
SECRET = b"s" * 32
KEY = derive_target_key(SECRET, INCARNATION)
PLACE = Place(("local",), ("local",))


def begin(model_dir: Path, logs: Path, *args: str, incarnation: str = INCARNATION) -> Starting:
    """Start one with these arguments more."""
    model = Model(id="smol", source=str(model_dir), args=[*ARGS, *args], replicas=[{"zone": "local"}])
    plan = EnginePlan(model, "127.0.0.1", incarnation, derive_target_key(SECRET, incarnation), PLACE, cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_LOG_DIR", str(logs))
        return Starting(VllmProcess(plan))
