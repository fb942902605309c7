import pytest

from deployments.secret import cluster_secret
from router.config import ConfigError, Secret


def test_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "s" * 40 + "\n")
    assert cluster_secret(Secret(env="MY_SECRET")) == b"s" * 40
    monkeypatch.setenv("MY_SECRET", "short")
    with pytest.raises(ConfigError, match="`MY_SECRET` holds 5 bytes"):
        cluster_secret(Secret(env="MY_SECRET"))
    monkeypatch.delenv("MY_SECRET")
    with pytest.raises(ConfigError, match="`MY_SECRET` is not set on this node"):
        cluster_secret(Secret(env="MY_SECRET"))


def test_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    (tmp_path / "secret").write_bytes(b"f" * 32 + b"\n")
    assert cluster_secret(Secret(file="secret")) == b"f" * 32
    with pytest.raises(ConfigError, match=r"cannot read .*/missing on this node"):
        cluster_secret(Secret(file="missing"))
