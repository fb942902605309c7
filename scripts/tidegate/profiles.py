"""Engine profiles by name: those that come with tidegate, and those that `tidegate plan --calibrate` measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from router.placement.profile import KNOWN, EngineProfile, parse_profile
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
        return parse_profile(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: {error}") from None


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
