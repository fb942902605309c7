"""Live tests need a model: `TIDEGATE_TEST_MODEL`, else the default one, prepared on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.config import home
from tests.live import guarded_engine, plain_stack
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.cut_model import cut_model
from tests.live.starting import Parented, Starting, install


class Ahead:
    """The servers of the tests that were asked for, all starting at once. `wait` for one before it is used."""

    plain: Parented
    pooling: Parented
    guarded: Starting
    misspelt: Starting


@pytest.fixture(scope="session")
def ahead(request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    """Starts what the selected tests will need, when the first of them does. Each ends with the module that uses it."""
    modules = {item.path.name for item in request.session.items}
    started, logs = Ahead(), tmp_path_factory.mktemp("logs")
    if "test_conformance.py" in modules:
        cut = cut_model(model_dir, tmp_path_factory.mktemp("model") / ENGINE_MODEL)
        started.plain = plain_stack.begin_engine(cut, logs)
        started.pooling = plain_stack.begin_engine(cut, logs, plain_stack.POOLING)
    if "test_engine.py" in modules:
        started.guarded = guarded_engine.begin(model_dir, logs)
        started.misspelt = guarded_engine.begin(model_dir, logs, "--max-modle-len", "2048", incarnation="live-wrong-1")
    yield started
    if "test_conformance.py" in modules:
        started.plain.kill()
        started.pooling.kill()
    if "test_engine.py" in modules:
        started.guarded.stop()
        started.misspelt.stop()


@pytest.fixture(scope="session")
def openai_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `openai` package of the major version before."""
    folder = tmp_path_factory.mktemp("openai-2")
    assert not (failed := install(folder, "openai>=2.54,<3")), failed
    return folder


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """A directory with a small instruct model that vLLM can serve."""
    if configured := os.environ.get("TIDEGATE_TEST_MODEL"):
        return Path(configured)
    default = home() / ".tidegate" / "models" / "SmolLM2-135M-Instruct"
    if (default / "config.json").is_file():
        return default
    try:
        from tidegate.models import prepare_default_model
    except ImportError:
        pytest.skip("no model: set TIDEGATE_TEST_MODEL to a directory with one")
    return Path(prepare_default_model(home()))
