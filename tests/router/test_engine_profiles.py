"""A calibrated profile reaches the live predictions, changes with the policy, and is refused by name when it is none."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec.structs import replace

from router.config import ConfigError
from router.decide import decide
from router.engine_profiles import profiles_of
from router.placement.fleet import Fleet
from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100
from router.placement.targets import Report
from tests.router.builders import NOW, make_config, make_facts, make_policy, make_target


def model(profile):
    zones = [{"zone": "eu", "duties": ["baa"]}]
    return {"models": [{"id": "tiny", "source": "x/tiny", "profile": profile, "replicas": zones}]}


def test_a_prediction_starts_from_the_models_own_profile_and_follows_a_new_one(tmp_path):
    (tmp_path / "slow.json").write_bytes(msgspec.json.encode({"profile": QWEN_72B_4XH100, "measured": {"error": 0.01}}))
    (tmp_path / "fast.json").write_bytes(msgspec.json.encode(LLAMA_8B_H100))
    policy = make_policy()
    target = make_target(policy, "a", "eu")
    facts = replace(make_facts(policy), prompt_tokens=6000)
    fleet = Fleet(0.0, profiles_of(make_config(**model("slow.json")), tmp_path))
    fleet.update([Report(target)])

    def predicted():
        return decide(facts, policy, fleet.view(NOW), NOW).chosen.predicted_ttft_s

    assert predicted() == pytest.approx(QWEN_72B_4XH100.prefill_s(6000))
    fleet.adopt(lambda seen: seen, 0.0, profiles_of(make_config(**model("fast.json")), tmp_path))
    assert predicted() == pytest.approx(LLAMA_8B_H100.prefill_s(6000))
    fleet.adopt(lambda seen: seen, 0.0, profiles_of(make_config(), tmp_path))
    assert fleet.load_of(target.incarnation).profile is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "cannot read"),
        ("{", "no engine profile"),
        ("[]", "no engine profile"),
        (json.dumps({"name": "x"}), "no engine profile"),
        (msgspec.json.encode(replace(LLAMA_8B_H100, overhead=-1.0)).decode(), "`overhead` must be positive"),
        (msgspec.json.encode(replace(LLAMA_8B_H100, per_token=1.0)).decode(), "below `per_token`"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_its_place(tmp_path, text, word):
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"models\[0\]\.profile: .*{word}"):
        profiles_of(make_config(**model("p.json")), tmp_path)
