"""The engine profiles that a configuration names, read where the routers run: predictions start from them."""

from __future__ import annotations

from pathlib import Path

from router.config import Config, ConfigError
from router.placement.profile import EngineProfile, parse_profile


def profiles_of(config: Config, base: Path) -> dict[str, EngineProfile]:
    """The profile of each model that has one.

    Args:
        config: the validated configuration.
        base: where relative paths start.

    Raises:
        ConfigError: a file cannot be read, or holds no profile.
    """
    found = {}
    for i, model in enumerate(config.models):
        if model.profile is None:
            continue
        path = base / model.profile
        try:
            found[model.id] = parse_profile(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"models[{i}].profile: cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"models[{i}].profile: {path}: {error}") from None
    return found
