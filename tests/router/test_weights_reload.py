"""Weights that a refit promotes come into use while the router runs; weights that cannot be used change nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from router.complexity.compile import PROMOTED, digest_of_weights
from router.complexity.weights import DEFAULT, pack_weights, read_weights
from router.ledger import records
from router.policy_source import PolicySource
from tests.router.conftest import FrontDoor, open_front_door
from tests.router.test_labelling import Labels

TIERS = {"small": "small", "large": "large"}


def source_of(door: FrontDoor, base: Path) -> PolicySource:
    return PolicySource(door.state.config.model_dump(mode="json", exclude_none=True), base)


def promote(directory: Path, base: float) -> str:
    """Weights that expect so much of every request's large answer."""
    stored = read_weights(DEFAULT)
    head = stored.gains[0]
    made = type(head)(**{name: getattr(head, name) for name in head.__struct_fields__} | {"base": base})
    temporary = directory / "new"
    temporary.write_bytes(pack_weights(replace(stored, gains=[made])))
    temporary.replace(directory / PROMOTED)
    return digest_of_weights(directory / PROMOTED)


async def test_promoted_weights_decide_from_the_next_request_on_and_broken_ones_do_not(tmp_path):
    labels = {"zone": "eu", "share": 0.000001, "dir": "labels"}
    section = {"price": 0.5, "labels": labels, "pin_conversations": False}
    (tmp_path / "labels").mkdir()
    async with open_front_door({"small": "eu", "large": "eu"}, tiers=TIERS, complexity=section) as door:
        door.state.audit = Labels()
        source = source_of(door, tmp_path)
        source.running = source.load()
        assert not source.changed()

        async def asked() -> str:
            return (await door.chat("hello there", model="auto")).headers["x-tidegate-model"]

        assert await asked() == "m-small"
        epoch, name = door.state.policy.epoch, promote(tmp_path / "labels", 9.0)
        assert source.changed() and door.router.take_policy(source) is None and not source.changed()
        assert await asked() == "m-large"
        assert (door.state.policy.weights, door.state.policy.epoch) == (name, epoch)
        assert (records.WEIGHTS, name, {"epoch": epoch}) in door.state.audit.said

        (tmp_path / "labels" / PROMOTED).write_bytes(b"half of it")
        assert source.changed()
        door.router.take_policy(source)
        assert "no weights file" in door.state.policy_alert and await asked() == "m-large"
        (tmp_path / "labels" / PROMOTED).unlink()
        door.router.take_policy(source)
        assert door.state.policy_alert == "" and await asked() == "m-small"


async def test_a_named_file_that_is_replaced_is_taken_too(tmp_path):
    shutil.copy(DEFAULT, tmp_path / "mine.tgcw")
    async with open_front_door({"small": "eu", "large": "eu"}, tiers=TIERS) as door:
        data = door.state.config.model_dump(mode="json", exclude_none=True)
        data["complexity"] |= {"price": 0.5, "weights": "mine.tgcw"}
        source = PolicySource(data, tmp_path)
        source.running = source.load()
        os.utime(tmp_path / "mine.tgcw", (1, 1))
        assert source.changed()
        source.load()
        assert not source.changed()


@pytest.mark.parametrize("pinned", [True, False])
async def test_whether_conversations_keep_their_model_follows_the_policy(tmp_path, pinned):
    tiers = {"small": "eu", "large": "eu"}
    async with open_front_door(tiers, tiers=TIERS, complexity={"price": 1.0}) as door:
        assert (await door.chat("hello there", model="auto")).headers["x-tidegate-model"] == "m-small"
        data = door.state.config.model_dump(mode="json", exclude_none=True)
        data["complexity"] |= {"price": -0.5, "pin_conversations": pinned, "pin_margin": 1.0}
        loaded = PolicySource(data, tmp_path).load()
        door.state.adopt(loaded.config, loaded.policy, 0.0)
        expected = "m-small" if pinned else "m-large"
        assert (await door.chat("hello there", model="auto")).headers["x-tidegate-model"] == expected
