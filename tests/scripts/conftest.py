"""A home of its own for every test: nothing touches the checkout's `.tidegate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tidegate.home import Home

CONFIG = {
    "listen": {"port": 28700},
    "admin": {"host": "127.0.0.1", "port": 28701},
    "zones": {"local": {}},
    "models": [{"id": "m", "source": "weights", "replicas": [{"zone": "local", "gpus": 0}]}],
    "keys": [{"id": "quickstart", "sha256_file": ".tidegate/keys/quickstart.sha256"}],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    return Home(tmp_path.resolve())


@pytest.fixture
def config_file(home: Home) -> Path:
    path = home.root / "serve_config.yaml"
    document = {
        "proxy_location": "Disabled",
        "applications": [{"name": "tidegate", "route_prefix": None, "import_path": "deployments.app:build", "args": CONFIG}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path
