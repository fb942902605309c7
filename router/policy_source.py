"""Where a running process gets its policy from, and what may change while it runs.

Three layers, later ones replacing whole keys of earlier ones: the configuration it was started with, the watched
`policy_file`, and the `user_config` that Ray Serve hands to the router without restarting anything. Break-glass relaxations
come on top. Reading them is all or nothing: what cannot be read, checked and compiled leaves the policy that runs as it is.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from msgspec.structs import replace

from router.compiled import compile_policy, epoch_under
from router.complexity.compile import weights_files
from router.config import Config, ConfigError, digest_of, parse_config, parse_yaml, read_layers, read_watched
from router.policy import Policy
from router.residency.break_glass import Relaxation, RelaxationError, read_approvals, read_relaxations
from router.residency.relaxing import compare

POLICY_KEYS = frozenset({"admission", "duties", "residency", "keys", "targets", "slo", "spill", "complexity", "classify"})
"""What may change while engines run. Everything else (models, zones, listeners, ...) needs a deployment."""
_END_OF_DOCUMENT = "..."
SPILL_OFF = ".tidegate/spill.off"
"""While this file is there (relative to TIDEGATE_HOME), nothing leaves: `tidegate spill off` makes it."""


def merge(base: Mapping[str, Any], part: Any, origin: str) -> dict[str, Any]:
    """`base` with the keys of `part` in place of its own.

    Args:
        base: a configuration as YAML gives it.
        part: a mapping of some of `POLICY_KEYS`; None counts as empty.
        origin: where it comes from, for messages.

    Raises:
        ConfigError: no mapping, a key that needs a restart, or another `residency.zone_label`, which does too.
    """
    if part is None:
        return dict(base)
    if not isinstance(part, dict):
        raise ConfigError(f"{origin}: expected a mapping, got {type(part).__name__}")
    for key in part:
        if key not in POLICY_KEYS:
            known = ", ".join(sorted(POLICY_KEYS))
            raise ConfigError(f"{origin}: `{key}` cannot change while engines run; what can: {known}")
    merged = {**base, **part}
    if _zone_label(merged) != _zone_label(base):
        raise ConfigError(f"{origin}: `residency.zone_label` cannot change while engines run")
    return merged


def _zone_label(data: Mapping[str, Any]) -> Any:
    residency = data.get("residency")
    return residency.get("zone_label") if isinstance(residency, dict) else None


def read_policy_file(path: Path) -> Any:
    """The mapping in a policy file.

    The file must end with YAML's own end of a document, a line `...`: a file that is half written has valid YAML in it
    as often as not, and a list of duties cut short is a wider policy.

    Raises:
        ConfigError: it cannot be read, is not YAML, or does not end with `...`.
    """
    try:
        text = read_watched(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or type(error).__name__}") from None
    if not text.endswith("\n") or text.rstrip().rsplit("\n", 1)[-1] != _END_OF_DOCUMENT:
        raise ConfigError(f"{path}: end a policy file with a line `...`, so that half of one is never taken for the whole")
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def read_configured(path: Path, base: Path) -> Config:
    """A configuration with its policy file and its `user_config`, as routers have it once they run; no file of a key is read.

    Args:
        path: the configuration file.
        base: the directory that relative paths start from.

    Raises:
        ConfigError: any of them cannot be used.
    """
    args, part = read_layers(path)
    return parse_config(_with_layers(args, part, base) if isinstance(args, dict) else args, str(path))


def _with_layers(args: Mapping[str, Any], part: Any, base: Path) -> dict[str, Any]:
    """A configuration with its policy file, if it names one, and then `part` (its `user_config`) over it."""
    data: Mapping[str, Any] = args
    if args.get("policy_file"):
        file = base / str(args["policy_file"])
        data = merge(data, read_policy_file(file), str(file))
    return merge(data, part, "user_config")


class Loaded(NamedTuple):
    """A configuration, the text of its break-glass file, and the policy both make."""

    config: Config
    glass: str
    policy: Policy


def compile_loaded(config: Config, glass: str, base: Path) -> Loaded:
    """The policy of a configuration and the text of a break-glass file, every signature checked.

    Raises:
        ConfigError: either cannot be used.
    """
    relaxations: tuple[Relaxation, ...] = ()
    if config.break_glass is not None:
        rules = config.break_glass
        try:
            relaxations = read_relaxations(glass, rules.approvers, rules.required, rules.max_hours)
        except RelaxationError as error:
            raise ConfigError(f"{rules.file}: {error}") from None
    return Loaded(config, glass, compile_policy(config, base, relaxations))


def without_spill(loaded: Loaded) -> Loaded:
    """The same with nothing outside allowed. Made of the compiled policy, because no configuration may keep this from working:
    one that has nothing but external places for some key would be refused."""
    config, _, policy = loaded
    shut = config.model_copy(update={"spill": config.spill.model_copy(update={"enabled": False})})
    return loaded._replace(config=shut, policy=replace(policy, spill_enabled=False, epoch=epoch_under(shut, policy.relaxations)))


class PolicySource:
    """Reads the layers of one process.

    Args:
        args: the configuration the process was started with, as YAML gives it.
        base: the directory that relative paths start from.
    """

    def __init__(self, args: Mapping[str, Any], base: Path) -> None:
        self._args = dict(args)
        self._base = base
        self._part: Any = None
        self._seen: object = None
        self._weights: tuple[Path, ...] = ()
        """The files that the weights of the last `load` may have come from."""
        self.running: Loaded | None = None
        """What the process runs under, once it does: the next policy is held against it."""
        self.wider: tuple[str, ...] = ()
        """What the policy of the last `load` lets go further than the one that runs, signed for by enough people."""

    def offer(self, part: Any) -> None:
        """Take another uppermost layer; the next `load` reads it."""
        self._part = part

    def load(self) -> Loaded:
        """Read all layers.

        Raises:
            ConfigError: any of them cannot be used.
        """
        try:
            return self._load()
        except ConfigError:
            raise
        except Exception as error:  # whatever a file says, it must not end the watch that would see it corrected
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(f"it cannot be used ({type(error).__name__} at {where.name}:{where.lineno})") from error

    def _load(self) -> Loaded:
        files = self._files()
        self._seen = files, self._weights_seen()
        config = parse_config(_with_layers(self._args, self._part, self._base))
        self._weights = weights_files(config.complexity, self._base)
        self._seen = files, self._weights_seen()
        loaded = compile_loaded(config, self._read_glass(config), self._base)
        if (self._base / SPILL_OFF).exists():
            loaded = without_spill(loaded)
        self.wider = self._approved(loaded)
        return loaded

    def _approved(self, loaded: Loaded) -> tuple[str, ...]:
        rules, before = loaded.config.break_glass, self.running
        if rules is None or rules.policies is None or before is None or digest_of(before.config) == digest_of(loaded.config):
            return ()
        now = time.time()
        change = compare((before.config, before.policy), (loaded.config, loaded.policy), now)
        if not change.wider:
            return ()
        digests = digest_of(before.config), digest_of(loaded.config)
        try:
            approvals = read_approvals(self._read_signed(rules.policies), rules.approvers, rules.required)
        except RelaxationError as error:
            raise ConfigError(f"{rules.policies}: {error}") from None
        if digests not in {(given.before, given.after) for given in approvals if given.holds(now, rules.max_hours)}:
            more = f" and {len(change.wider) - 3} more" if len(change.wider) > 3 else ""
            step = f"--before {digests[0]} --after {digests[1]}"
            raise ConfigError(
                f"this policy lets more through than the one that runs ({'; '.join(change.wider[:3])}{more}), and "
                f"{rules.required} approvers have not signed that, or their leave has ended: `tidegate policy approve {step}`"
            )
        return change.wider

    def changed(self) -> bool:
        """Whether a watched file is another than at the last `load`."""
        return (self._files(), self._weights_seen()) != self._seen

    def _read_glass(self, config: Config) -> str:
        return "" if config.break_glass is None else self._read_signed(config.break_glass.file)

    def _read_signed(self, name: str) -> str:
        path = self._base / name
        try:
            return read_watched(path)
        except FileNotFoundError:
            return ""  # no file, no relaxation
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"break_glass: cannot read {path} ({type(error).__name__})") from None

    def _weights_seen(self) -> object:
        return tuple(map(_stat, self._weights))

    def _files(self) -> object:
        glass = self._args.get("break_glass")
        named = [glass.get("file"), glass.get("policies")] if isinstance(glass, dict) else []
        files = [self._args.get("policy_file"), *named]
        return tuple(_stat(self._base / str(name)) for name in (*files, SPILL_OFF) if name)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
