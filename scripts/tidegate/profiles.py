"""Engine profiles by name: those that come with tidegate, and those that `tidegate plan --calibrate` measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from router.placement.profile import KNOWN, EngineProfile
from tidegate.home import find_home


class ProfileError(ValueError):
    """There is no such profile, or it makes no sense; the text says what to do."""


def directory() -> Path:
    """Where measured profiles lie."""
    return find_home().state / "profiles"


def find_profile(name: str) -> EngineProfile:
    """A known profile by name, one that was measured here, or one from a JSON file.

    Args:
        name: of `KNOWN`, of a file in `directory()` without its ending, or a path.

    Raises:
        ProfileError: nothing of these exists, or the file does not hold a profile.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if not path.is_file():
        path = directory() / f"{file_name(name)}.json"
    if not path.is_file():
        there = ", ".join([*KNOWN, *measured()])
        raise ProfileError(f"no engine profile {name}: name a JSON file, one of {there}, or measure one with --calibrate URL")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = msgspec.convert(document.get("profile", document), EngineProfile)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ProfileError(f"{path} holds no engine profile: {error}") from None
    _check(found, path)
    return found


def _check(profile: EngineProfile, path: Path) -> None:
    """Constants that no engine can have would make the simulation stand still or run backwards."""
    costs = {name: getattr(profile, name) for name in ("per_token", "per_token_full", "per_context", "attention")}
    counts = {name: getattr(profile, name) for name in ("kv_tokens", "step_tokens", "slots")}
    for name, value in (*costs.items(), ("knee", profile.knee)):
        if not 0 <= value < 1e9:
            raise ProfileError(f"{path}: `{name}` must not be negative")
    for name, value in (*counts.items(), ("overhead", profile.overhead)):
        if not 0 < value < 1e12:
            raise ProfileError(f"{path}: `{name}` must be positive")
    if profile.per_token_full < profile.per_token:
        raise ProfileError(f"{path}: `per_token_full`, the cost of a token in a full step, is below `per_token`")


def measured() -> list[str]:
    """The names of the profiles that were measured here."""
    return sorted(path.stem for path in directory().glob("*.json"))


def file_name(name: str) -> str:
    """A profile's name as a file name: model ids have slashes."""
    return re.sub(r"[^A-Za-z0-9@._-]+", "-", name).strip("-.") or "profile"


def save(profile: EngineProfile, measurements: dict[str, Any], path: Path | None = None) -> Path:
    """Write a profile and what it was found from.

    Args:
        profile: the constants.
        measurements: what else there is to know: how they were measured, when, how well they fit.
        path: the file; by default one in `directory()` that `find_profile` finds by the profile's name.

    Raises:
        OSError: it cannot be written.
    """
    target = path or directory() / f"{file_name(profile.name)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"profile": msgspec.to_builtins(profile), "measured": measurements}
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return target
