"""Live tests need a model: `TIDEGATE_TEST_MODEL`, else the default one, prepared on first use."""

import os
from pathlib import Path

import pytest

from router.config import home


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
