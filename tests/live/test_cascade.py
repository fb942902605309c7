"""The cascade and the label loop with two real models of different skill, one made from the other by leaving out a layer."""

import asyncio
import csv
import sys
from pathlib import Path

import pytest

from router.complexity.label import read_labels
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


async def test_real_answers_become_labels_and_a_real_judge_is_asked_twice(model_dir, tmp_path):
    few = [one for one in questions() if not one.among][:5]
    known, labels = tmp_path / "known.csv", tmp_path / "labels"
    with known.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "pattern"), *((one.text, rf"(?i)\b(?:{one.answer})\b") for one in few)])
    section = {"zone": "local", "share": 1.0, "between": ["00:00", "00:00"], "idle_ttft_ms": 600_000, "dir": str(labels)}
    async with running(without_layers(model_dir, tmp_path / "worse"), model_dir) as stack:
        state = stack.router.state
        await stack.use({"share": 0.0, "labels": {**section, "references": str(known)}})
        for count, question in enumerate(few, 1):
            said, _, response = await stack.ask(question.text, "auto", stream=bool(count % 2))
            assert response.headers["x-tidegate-model"] == "m-small"
            async with asyncio.timeout(300):
                while len(list(read_labels(labels))) < count:
                    await asyncio.sleep(0.1)
            label = list(read_labels(labels))[-1]
            assert (label.by, label.pair, label.small) == ("reference", ("m-small", "m-large"), float(question.is_right(said)))
        await stack.use({"share": 0.0, "labels": {**section, "judge": "m-large"}})
        for question in few:
            await stack.ask(question.text, "auto")
            async with asyncio.timeout(300):
                while state.labels_running:
                    await asyncio.sleep(0.1)
        own = [receipt for receipt, _ in state.receipts._receipts.values() if receipt.mode == "label"]
        judged = [receipt for receipt in own if [step.model for step in receipt.steps] == ["m-large", "m-large"]]
        assert judged and all(receipt.status == 200 and receipt.completion_tokens > 0 for receipt in own)
