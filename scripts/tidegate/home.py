"""Where things lie on disk, and the environment that everything started from here gets.

Nothing is written outside the home directory (`TIDEGATE_HOME`, else the checkout), except Ray's sockets when the home's
path is too long for one or not in ASCII.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from router.config import home as router_home

DEFAULT_CONFIG = "serve_config.yaml"
RUN_ID = "TIDEGATE_RUN_ID"

# A unix socket's path holds at most 107 bytes, and Ray appends up to 64:
# "/session_2026-11-22_00-35-50_707921_1234567/sockets/plasma_store".
_LONGEST_RAY_DIRECTORY = 107 - 64


@dataclass(frozen=True)
class Home:
    """The directories of one installation; `root` is what relative paths in a configuration start from."""

    root: Path

    @property
    def state(self) -> Path:
        """Everything that is made at run time."""
        return self.root / ".tidegate"

    @property
    def keys(self) -> Path:
        """Client keys: the digests, and the one plain quickstart key."""
        return self.state / "keys"

    @property
    def logs(self) -> Path:
        """Engine logs."""
        return self.state / "logs"

    @property
    def step_logs(self) -> Path:
        """The output of the steps of `up`: `ray start`, `serve run`, the conversion of the model."""
        return self.state / "up"

    @property
    def models(self) -> Path:
        """Converted models."""
        return self.state / "models"

    @property
    def run_file(self) -> Path:
        """What the present run is: see `processes.Run`."""
        return self.state / "run.json"

    @property
    def effective_config(self) -> Path:
        """The configuration that is really served, when options changed the one in the file."""
        return self.state / "effective.yaml"

    @property
    def ray_token(self) -> Path:
        """The token without which nobody joins or commands this Ray."""
        return self.state / "ray-token"

    @property
    def ray_directory(self) -> Path:
        """Ray's working directory, short enough for the unix sockets in it, and in ASCII: Ray takes no other path.

        Ray lets everybody write to it, so the directory around it must be private.
        """
        inside = self.state / "ray"
        if len(os.fsencode(inside)) <= _LONGEST_RAY_DIRECTORY and str(inside).isascii():
            return inside
        return Path(tempfile.gettempdir()) / f"tidegate-{os.getuid()}-{self.tag}" / "ray"

    @property
    def tag(self) -> str:
        """Eight hex digits that tell this home from others on the machine; every run id begins with them."""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]


def find_home() -> Home:
    """The home of this installation."""
    return Home(router_home())


def make_private(directory: Path) -> Path:
    """Create a directory that only its owner may enter.

    Raises:
        PermissionError: it exists and belongs to somebody else (a shared temporary directory is no place to trust).
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        own = "run this as that user, or in places of your own (TIDEGATE_HOME, TMPDIR)"
        raise PermissionError(f"{directory} belongs to another user: {own}")
    directory.chmod(0o700)
    return directory


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, and have it appear complete or not at all."""
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def child_environment(home: Home, run_id: str) -> dict[str, str]:
    """The environment of everything `up` starts.

    Addresses of another Ray are dropped, so that ours is never mixed up with one that runs already. So is
    PYTHONDONTWRITEBYTECODE: without compiled bytecode importing Ray takes 4.3 s instead of 1.5 s in every process.
    """
    dropped = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    if not os.access(environment.get("HOME") or "/nonexistent", os.W_OK):
        environment["HOME"] = str(make_private(home.state / "home"))
    environment.update(
        {
            RUN_ID: run_id,
            "TIDEGATE_HOME": str(home.root),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home.ray_token),
            # `uv run tidegate up` would otherwise make Ray copy the whole checkout into every worker.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
    )
    return environment
