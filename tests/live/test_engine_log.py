"""What the real vLLM writes when its engine core fails in the middle of a step: nothing of what it was asked."""

import subprocess
import sys

import pytest

from deployments.vllm_command import build_env
from router.config import Model

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
FAILING = """
import multiprocessing
from types import SimpleNamespace
from vllm.logger import init_logger
from vllm.logging_utils.dump_input import dump_engine_exception
from vllm.plugins import load_general_plugins
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData

def core():
    load_general_plugins()
    asked = SamplingParams(stop=["Jane Roe"])
    step = NewRequestData(
        req_id="r", prompt_token_ids=[1], mm_features=[], sampling_params=asked, pooling_params=None, block_ids=([],),
        num_computed_tokens=0, lora_request=None,
    )
    dump_engine_exception(None, SimpleNamespace(scheduled_new_reqs=[step]), None)
    init_logger("vllm.v1.engine.core").error("the step failed")

process = multiprocessing.get_context("fork").Process(target=core)
process.start(); process.join()
"""


def fail(**changes: str) -> str:
    model = Model(id="m", source="m", replicas=[{"zone": "eu"}], env=changes)
    env = build_env(model, "m", {}, cpus=1, gpus=0)
    done = subprocess.run([sys.executable, "-c", FAILING], env=env, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_step_that_fails_logs_nothing_of_its_requests():
    said = fail(VLLM_PLUGINS="lora_filesystem_resolver")
    assert "the step failed" in said and "Dumping scheduler output" in said
    assert "Jane" not in said
