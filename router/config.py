"""What the YAML may say: validated, immutable, and hashed into a policy epoch.

`load_file` reads either a Ray Serve config (`applications[].args` of the one that imports `deployments`) or the bare
mapping those `args` hold. Pydantic lives here, at the edge, and nowhere else: `router.policy.compile_policy` turns a
`Config` into the frozen structs the hot path uses.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,127}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
AUTO = "auto"
LOCAL = "local"
"""The built-in tag: every zone that is not external. It is also the default label."""
ANY = "any"
"""The built-in tag: every zone of the configuration."""


class ConfigError(ValueError):
    """The configuration cannot be used. The text names the file's key and says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError("use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    return value


def _check_model(value: str) -> str:
    if not _MODEL.match(value):
        raise ValueError("use 1 to 128 of A-Z a-z 0-9 . _ / : @ - and begin with a letter or digit")
    return value


Name = Annotated[str, Field(min_length=1, max_length=64)]


class Listen(_Strict):
    """An address the router opens."""

    host: str = "0.0.0.0"  # noqa: S104 - the public port is public; the admin port's default is not
    port: int = Field(default=8000, ge=1, le=65535)


class RouterOptions(_Strict):
    """How many router replicas share the public port, and on which nodes (one per node that carries `label_selector`)."""

    replicas: int = Field(default=1, ge=1, le=64)
    cpus: float = Field(default=0.5, ge=0)
    label_selector: dict[str, str] = {}


class Zone(_Strict):
    """A place bytes may be. `external` ones are outside the cluster: nothing goes there unless a label and a key say so."""

    external: bool = False


class Tag(_Strict):
    """A residency tag: the zones that may process and store, and the duties a target must carry."""

    process: list[Name]
    store: list[Name] | None = None
    require: list[Name] = []


class Residency(_Strict):
    """Tags and the label of a request that carries none."""

    tags: dict[Name, Tag] = {}
    default: Name = LOCAL
    zone_label: str = "tidegate.io/zone"
    """The Ray node label that says in which zone a node stands."""


class Replicas(_Strict):
    """How many engines of a model run in one zone, and what each of them takes."""

    zone: Name
    count: int = Field(default=1, ge=1, le=512)
    gpus: float = Field(default=1, ge=0)
    cpus: float = Field(default=1, ge=0)
    memory_gib: float | None = Field(default=None, gt=0)
    """Host memory one engine needs; `doctor` adds these up before anything starts. Default: 4 on a CPU, else 8."""
    duties: list[Name] = []


class Model(_Strict):
    """A model that Ray Serve runs with vLLM. `args` and `env` are vLLM's own, passed on as they are."""

    id: str
    source: str
    """A directory (relative to TIDEGATE_HOME) or a model id that vLLM can load."""
    tier: Name = "small"
    task: Literal["generate", "pooling"] = "generate"
    args: list[str] = []
    env: dict[str, str] = {}
    replicas: list[Replicas] = Field(min_length=1)
    startup_timeout_s: float = Field(default=1800, gt=0)

    _id = field_validator("id")(_check_model)

    @field_validator("args", mode="before")
    @classmethod
    def _strings(cls, value: Any) -> Any:
        return [str(item) for item in value] if isinstance(value, list) else value


class Credential(_Strict):
    """Where a provider's key is read from when it is needed; it is never written down again."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Credential:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of `env` and `file`")
        return self


class Prices(_Strict):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class ExternalTarget(_Strict):
    """A server that already runs (`kind: server`), or a provider outside (`kind: cloud`, dialled by the egress only)."""

    id: Name
    kind: Literal["server", "cloud"]
    url: str
    """Base URL without `/v1`, e.g. `http://10.0.0.7:8080` or `https://api.openai.com`."""
    zone: Name
    store: list[Name] | None = None
    duties: list[Name] = []
    models: dict[str, str]
    """Model ids clients use -> the name this server knows."""
    tier: Name | None = None
    """Makes the models of this target members of a tier."""
    task: Literal["generate", "pooling"] = "generate"
    credential: Credential | None = None
    vouched: bool = False
    """`server` only: the operator states that nobody but the router can reach its port (there is no guard inside)."""
    expires: str | None = None
    """ISO date after which the declared evidence counts for nothing."""
    context_tokens: int = Field(default=0, ge=0)
    slots: int = Field(default=0, ge=0)
    price: Prices = Prices()

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not re.match(r"https?://[^/\s?#@]+(/[^\s?#]*)?\Z", value):
            raise ValueError("a base URL looks like https://host[:port][/path], without user, query or fragment")
        return value.rstrip("/")

    _id = field_validator("id")(_check_name)

    @model_validator(mode="after")
    def _vouch(self) -> ExternalTarget:
        if self.kind == "server" and not self.vouched:
            raise ValueError(
                "a server that already runs has no guard inside: set `vouched: true` once you have made sure that "
                "nobody but the router can reach its port"
            )
        if not self.models:
            raise ValueError("name at least one model")
        for model in self.models:
            _check_model(model)
        return self


class Key(_Strict):
    """A client's key. Only its SHA-256 is written here (`tidegate keys create` prints one)."""

    id: Name
    sha256: str | None = None
    sha256_file: str | None = None
    tenant: Name = "default"
    residency: list[Name] | Name | None = None
    """The ceiling: one tag, or several that all hold. Default: `residency.default`."""
    models: list[str] | None = None
    """Model ids and tiers this key may use. Default: all."""
    spill: bool = False
    """Whether this key's requests may leave for a cloud target when the cluster is saturated."""
    requests_per_minute: int = Field(default=0, ge=0)
    """0: no limit. Counted by each router replica for itself, as is `daily_tokens`."""
    timeout_ms: int = Field(default=0, ge=0)
    """Bound on a whole request of this key; the header `x-request-timeout-ms` goes before it. 0: `timeouts.request_s`."""
    daily_tokens: int = Field(default=0, ge=0)
    """Prompt and answer tokens per UTC day; 0: no limit."""

    @model_validator(mode="after")
    def _one_source(self) -> Key:
        if (self.sha256 is None) == (self.sha256_file is None):
            raise ValueError("give exactly one of `sha256` and `sha256_file`")
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise ValueError("sha256 is 64 lower-case hex digits: `tidegate keys create NAME` prints it")
        return self


class Slo(_Strict):
    """What a request may wait. Predicted above `ttft_ms`: the cluster counts as saturated (spill, if permitted).

    Predicted above `max_wait_ms`: refused at once with `Retry-After`.
    """

    ttft_ms: float = Field(default=2000, gt=0)
    max_wait_ms: float = Field(default=30000, gt=0)
    resume_ratio: float = Field(default=0.7, gt=0, le=1)
    """Spilling ends once the predicted wait is below this share of `ttft_ms` (hysteresis)."""


class Spill(_Strict):
    """Bounds on what goes outside, over all keys, per router replica."""

    enabled: bool = True
    daily_budget_usd: float | None = Field(default=None, ge=0)


class Complexity(_Strict):
    """The first complexity rule: which tier `auto` means. Tiers are listed from the smallest to the largest."""

    tiers: list[Name] = ["small", "large"]
    large_above_tokens: int = Field(default=1500, gt=0)
    score_threshold: float = Field(default=0.5, ge=0, le=1)


class Timeouts(_Strict):
    """Limits in seconds: connecting, the wait for the first byte, and a pause between two."""

    connect_s: float = Field(default=2.0, gt=0)
    first_byte_s: float = Field(default=300.0, gt=0)
    idle_s: float = Field(default=120.0, gt=0)
    request_s: float = Field(default=0.0, ge=0)
    """The whole request, from its last byte to the answer's; 0: no limit. A key's or a request's own bound goes before it."""


class Egress(_Strict):
    """The process that holds cloud credentials. Without `url`, one is started beside the router."""

    url: str | None = None


class Secret(_Strict):
    """Where the cluster secret (32 bytes or more, any text) comes from. Default: made anew when the cluster starts."""

    env: str | None = None
    file: str | None = None


class Config(_Strict):
    """The whole configuration; see the README for a commented example."""

    listen: Listen = Listen()
    admin: Listen = Listen(host="127.0.0.1", port=8001)
    router: RouterOptions = RouterOptions()
    zones: dict[Name, Zone] = Field(min_length=1)
    duties: list[Name] = []
    residency: Residency = Residency()
    models: list[Model] = []
    targets: list[ExternalTarget] = []
    keys: list[Key] = []
    slo: Slo = Slo()
    spill: Spill = Spill()
    complexity: Complexity = Complexity()
    timeouts: Timeouts = Timeouts()
    egress: Egress = Egress()
    secret: Secret = Secret()
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)

    @field_validator("zones", "duties")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value:
            _check_name(name)
        return value

    @model_validator(mode="after")
    def _cross_check(self) -> Config:
        _check_references(self)
        return self


def _check_references(config: Config) -> None:
    zones, duties = set(config.zones), set(config.duties)
    tags = set(config.residency.tags) | zones | {LOCAL, ANY}

    def known(kind: str, name: str, allowed: set[str], where: str) -> None:
        if name not in allowed:
            raise ValueError(f"{where}: unknown {kind} `{name}`{_nearest(name, allowed)}")

    if len(config.zones) > 62 or len(config.duties) > 62:
        raise ValueError("at most 62 zones and 62 duties")
    for reserved in {LOCAL, ANY} & set(config.residency.tags):
        raise ValueError(f"residency.tags.{reserved}: this tag is built in")
    for name, tag in config.residency.tags.items():
        for zone in (*tag.process, *(tag.store or ())):
            known("zone", zone, zones, f"residency.tags.{name}")
        for duty in tag.require:
            known("duty", duty, duties, f"residency.tags.{name}.require")
    known("tag", config.residency.default, tags, "residency.default")
    for i, model in enumerate(config.models):
        for j, replicas in enumerate(model.replicas):
            known("zone", replicas.zone, zones, f"models[{i}].replicas[{j}].zone")
            for duty in replicas.duties:
                known("duty", duty, duties, f"models[{i}].replicas[{j}].duties")
            if config.zones[replicas.zone].external:
                raise ValueError(f"models[{i}].replicas[{j}].zone: `{replicas.zone}` is external; engines run inside")
    for i, target in enumerate(config.targets):
        for zone in (target.zone, *(target.store or ())):
            known("zone", zone, zones, f"targets[{i}].zone")
        for duty in target.duties:
            known("duty", duty, duties, f"targets[{i}].duties")
        if target.kind == "cloud" and not config.zones[target.zone].external:
            raise ValueError(
                f"targets[{i}].zone: `{target.zone}` is not external, but a cloud target is outside the cluster: "
                f"declare the zone with `external: true`"
            )
    _check_identities(config, tags)


def _check_identities(config: Config, tags: set[str]) -> None:
    for where, ids in (
        ("models", [model.id for model in config.models]),
        ("targets", [target.id for target in config.targets]),
        ("keys", [key.id for key in config.keys]),
    ):
        for name in {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"{where}: `{name}` is there twice")
    tiers = set(config.complexity.tiers)
    served = {model.id for model in config.models} | {name for target in config.targets for name in target.models}
    for name in served & (tiers | {AUTO}):
        raise ValueError(f"models: `{name}` is the name of a tier; a model needs another id")
    for where, tier in (
        *((f"models[{i}].tier", model.tier) for i, model in enumerate(config.models)),
        *((f"targets[{i}].tier", target.tier) for i, target in enumerate(config.targets) if target.tier),
    ):
        if tier not in tiers:
            raise ValueError(f"{where}: unknown tier `{tier}`{_nearest(tier, tiers)} (complexity.tiers lists them)")
    for i, key in enumerate(config.keys):
        ceiling = [key.residency] if isinstance(key.residency, str) else key.residency or []
        for tag in ceiling:
            if tag not in tags:
                raise ValueError(f"keys[{i}].residency: unknown tag `{tag}`{_nearest(tag, tags)}")
        for name in key.models or []:
            if name not in served | tiers | {AUTO}:
                raise ValueError(f"keys[{i}].models: unknown model `{name}`{_nearest(name, served | tiers)}")
    if not config.models and not config.targets:
        raise ValueError("there is nothing to route to: give `models` or `targets`")


def _nearest(name: str, allowed: set[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(allowed), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(allowed))}"


def parse_config(data: Any, origin: str = "config") -> Config:
    """Validate a mapping.

    Args:
        data: the mapping, as YAML gives it.
        origin: the file's name, for messages.

    Raises:
        ConfigError: names every offending key, the nearest valid one for a typo, and what is expected.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected a mapping, got {type(data).__name__}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(problem)}" for problem in error.errors(include_url=False, include_input=False)]
        raise ConfigError("\n".join(lines)) from None


def _explain(problem: Any) -> str:
    place = ""
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if problem["type"] == "extra_forbidden":
        *parents, wrong = problem["loc"]
        valid = _valid_keys(parents)
        return f"unknown key `{place}`{_nearest(str(wrong), valid)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _valid_keys(path: list[Any]) -> set[str]:
    model: Any = Config
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = _model_inside(field.annotation)
    return set(getattr(model, "model_fields", {}))


def _model_inside(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_inside(argument)
        if found is not None:
            return found
    return None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as it is meant: a key given twice is an error, not a silent last-wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key}` is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_file(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: missing, not YAML, a key given twice, or not a valid configuration.
    """
    return parse_config(read_args(path), str(path))


def read_args(path: Path) -> Any:
    """The mapping a configuration file holds: the `args` of the tidegate application, or the bare mapping.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("applications"), list):
        for application in data["applications"]:
            if isinstance(application, dict) and str(application.get("import_path", "")).startswith("deployments"):
                return application.get("args") or {}
        raise ConfigError(f"{path}: no application imports `deployments.app:build`")
    return data


def home() -> Path:
    """The directory relative paths start from: `TIDEGATE_HOME`, else the checkout this package lies in, else `~/.tidegate`."""
    if configured := os.environ.get("TIDEGATE_HOME"):
        return Path(configured).resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.home() / ".tidegate"


def epoch_of(config: Config) -> str:
    """The policy epoch: the first 16 hex digits of the SHA-256 of the configuration in canonical JSON."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
