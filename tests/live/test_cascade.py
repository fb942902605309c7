"""The cascade with two real models of different skill, one made from the other by leaving out a layer."""

import sys
from pathlib import Path

import pytest

from tests.live.long import LONG

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _cascade.models import without_layers
from _cascade.questions import questions
from _cascade.stack import Stack, running

pytestmark = [pytest.mark.live, LONG]
ALWAYS = {"enabled": True, "mean_logprob": 0.0}
NEVER = {"enabled": True, "mean_logprob": -100.0, "cut_off": False, "refusals": False}


async def check_streams_and_whole_answers_agree(stack: Stack, text: str, model: str) -> None:
    """The same answer by the same model, with nothing in it that only the check asked for."""
    whole, receipt, response = await stack.ask(text, "auto")
    streamed, of_stream, events = await stack.ask(text, "auto", stream=True)
    assert whole == streamed and response.headers["x-tidegate-model"] == events.headers["x-tidegate-model"] == model
    assert response.json()["choices"][0]["logprobs"] is None and '"logprob"' not in events.text
    assert receipt["mode"] == of_stream["mode"] == "cascade" and 0 < receipt["steps"][0]["confidence"] < 1


async def test_real_confidence_decides_and_every_step_is_counted(model_dir, tmp_path):
    few = questions()[:12]
    async with running(without_layers(model_dir, tmp_path / "worse"), model_dir) as stack:
        await stack.use({"share": 0.0, "cascade": NEVER})
        await check_streams_and_whole_answers_agree(stack, few[0].text, "m-small")
        confidences = [(await stack.ask(question.text, "auto"))[1]["steps"][0]["confidence"] for question in few]
        await stack.use({"share": 0.0, "cascade": ALWAYS})
        await check_streams_and_whole_answers_agree(stack, few[0].text, "m-large")
        _, receipt, _ = await stack.ask(few[0].text, "auto")
        first, second = receipt["steps"]
        assert second["cost_usd"] > first["cost_usd"] > 0
        assert receipt["completion_tokens"] == first["completion_tokens"] + second["completion_tokens"]
        assert min(confidences) < max(confidences) < 1, "a real model is surer of some answers than of others"
