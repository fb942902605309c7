"""The shape of the configuration, in pydantic: what each key is called, what it may hold, and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from router.config.access import Access, Credential, Listen, PublicListen
from router.config.cache import Cache, KeyCache, read_switch
from router.config.capture import Capture
from router.config.check import CATEGORIES, KINDS, LOCAL, check_references, nearest
from router.config.complexity import Complexity
from router.config.providers import check_provider

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,127}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

RETENTION_FLOOR_DAYS = {"ai-act": 183, "hipaa": 2192, "pci-dss": 365, "dora": 1827}
"""AI Act Art. 19 and 26(6): six months. HIPAA 45 CFR 164.316(b)(2)(i): six years. PCI DSS 10.5.1: twelve months. DORA leaves
the length to the entity; five years is what its supervisors ask of records of ICT services."""


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


class RouterOptions(_Strict):
    """How many router replicas share the public port, and on which nodes (one per node that carries `label_selector`)."""

    replicas: int = Field(default=1, ge=1, le=64)
    cpus: float = Field(default=0.5, ge=0)
    label_selector: dict[str, str] = {}
    prefix_index_mib: int = Field(default=256, ge=8)
    """Bound on the memory in which a router keeps what its replicas' prefix caches hold."""


class Zone(_Strict):
    """A place bytes may be. `external` ones are outside the cluster: nothing goes there unless a label and a key say so."""

    external: bool = False


class Tag(_Strict):
    """A residency tag: the zones (or regions) that may process and store, and the duties a target must carry."""

    process: list[Name]
    store: list[Name] | None = None
    require: list[Name] = []
    sensitive: bool = False
    """Refuses the configuration should any external zone, named or inside a region, be open to this tag."""
    requires_lineage: bool = False
    """A continued conversation that the router cannot trace back to its beginning is held to this tag."""


class Residency(_Strict):
    """Tags and the label of a request that carries none."""

    regions: dict[Name, list[Name]] = {}
    """Names for sets of zones (and of regions declared before), to write tags with."""
    tags: dict[Name, Tag] = {}
    default: Name = LOCAL
    tenants: dict[Name, list[Name]] = {}
    """Tags that hold for every key of a tenant, whatever the key's own ceiling says."""
    models: dict[str, list[Name]] = {}
    """Tags that hold for every request a model answers, however the request came to that model."""
    zone_label: str = "tidegate.io/zone"
    """The Ray node label that says in which zone a node stands."""


class ClassifyRule(_Strict):
    """What is found tightens: `if` names kinds (`iban`, `passport`, ...) or categories (`pii`, `phi`, `financial`, `secret`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kinds: list[str] = Field(alias="if", min_length=1)
    meet: Name
    """The tag a request with such a finding is tightened to."""

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, value: list[str]) -> list[str]:
        known = {*CATEGORIES, *KINDS}
        for name in value:
            if name not in known:
                raise ValueError(f"unknown kind `{name}`{nearest(name, known)}")
        return value


class DetectorSocket(_Strict):
    """A detector in a process of its own, e.g. around Presidio; its protocol stands in `router.residency.classify.detector`."""

    socket: str
    timeout_ms: int = Field(default=200, ge=1, le=60000)


class Classify(_Strict):
    """Sensitive values in requests: what is found may only tighten the label. Without rules nothing is scanned."""

    rules: list[ClassifyRule] = []
    unknown: Name | None = None
    """The tag for what cannot be judged (over budget, detector silent, pictures). Default: all rules' tags together."""
    media: Literal["tighten", "ignore"] = "tighten"
    """Pictures, sound, files and token ids cannot be read: they count as unknown, or are ignored."""
    countries: list[str] | None = None
    """Two-letter codes of the countries whose numbers are looked for. Default: all known ones."""
    min_confidence: float = Field(default=0.5, ge=0.3, le=1)
    max_characters: int = Field(default=2_000_000, ge=1000)
    """How much of one request is looked at; a longer one counts as unknown."""
    detector: DetectorSocket | None = None


class Replicas(_Strict):
    """How many engines of a model run in one zone, and what each of them takes."""

    zone: Name
    count: int = Field(default=1, ge=1, le=512)
    max_count: int | None = Field(default=None, ge=1, le=512)
    """With it, Serve keeps between `count` and so many engines, by the wait that routers predict (`autoscaling`)."""
    gpus: float = Field(default=1, ge=0)
    cpus: float = Field(default=1, ge=0)
    memory_gib: float | None = Field(default=None, gt=0)
    """Host memory one engine needs; `doctor` adds these up before anything starts. Default: 4 on a CPU, else 8."""
    duties: list[Name] = []

    @model_validator(mode="after")
    def _bounds(self) -> Replicas:
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError("`max_count` is the most there may be: not below `count`")
        return self


class Prices(_Strict):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class Model(_Strict):
    """A model that Ray Serve runs with vLLM. `args` and `env` are vLLM's own, passed on as they are."""

    id: str
    source: str
    """A directory (relative to TIDEGATE_HOME) or a model id that vLLM can load."""
    tier: Name = "small"
    task: Literal["generate", "pooling", "transcription"] = "generate"
    args: list[str] = []
    env: dict[str, str] = {}
    replicas: list[Replicas] = Field(min_length=1)
    startup_timeout_s: float = Field(default=1800, gt=0)
    price: Prices = Prices()
    """What its tokens cost, for budgets in money and for `tidegate report cost`."""

    _id = field_validator("id")(_check_model)

    @field_validator("args", mode="before")
    @classmethod
    def _strings(cls, value: Any) -> Any:
        return [str(item) for item in value] if isinstance(value, list) else value


class Tls(_Strict):
    """How TLS is spoken to an `https://` address. The peer's certificate and name are verified in any case."""

    ca_file: str | None = None
    """PEM with the authorities that may have signed the peer's certificate. Default: the system's."""
    cert_file: str | None = None
    """The router's own certificate (PEM, with its chain), for mutual TLS."""
    key_file: str | None = None
    server_name: str | None = None
    """The name the peer's certificate must carry. Default: the host of the URL."""

    @model_validator(mode="after")
    def _both(self) -> Tls:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("`cert_file` and `key_file` come together")
        return self


class Provider(_Strict):
    """What a provider's dialect needs to know, and what the target's place rests on; `router.config.providers` checks it."""

    region: str | None = None
    """Bedrock, Vertex: the region called. OpenAI: the regional host's prefix, e.g. `eu`."""
    sku: str | None = None
    """Azure: the deployment's type, e.g. `DataZoneStandard`."""
    api_version: str | None = None
    """Azure: the `api-version` of deployment paths. Default: the `/openai/v1` API, which needs none."""
    geo: str | None = None
    """Anthropic: `inference_geo`, sent with every request and checked in every answer."""
    project: str | None = None
    """Vertex: the project."""
    anywhere: bool = False
    """The operator states that the target's zone stands for everywhere the provider works."""
    drop: list[str] = []
    """Fields of a request this model does not take, e.g. `temperature`: they are left out."""


class ExternalTarget(_Strict):
    """A server that already runs (`kind: server`), or a provider outside (`kind: cloud`, dialled by the egress only)."""

    id: Name
    kind: Literal["server", "cloud"]
    url: str
    """Base URL without `/v1`, e.g. `http://10.0.0.7:8080`, `https://api.openai.com`, or `unix:///run/engine.sock` (`server`)."""
    tls: Tls | None = None
    zone: Name
    store: list[Name] | None = None
    duties: list[Name] = []
    models: dict[str, str]
    """Model ids clients use -> the name this server knows."""
    tier: Name | None = None
    """Makes the models of this target members of a tier."""
    task: Literal["generate", "pooling", "transcription"] = "generate"
    dialect: Literal["openai", "azure", "anthropic", "bedrock", "gemini", "vertex"] = "openai"
    """`cloud` only: how the provider is spoken to. All but `openai` and `azure` offer chat only."""
    provider: Provider = Provider()
    credential: Credential | None = None
    vouched: bool = False
    """`server` only: the operator states that nobody but the router can reach its port (there is no guard inside)."""
    expires: str | None = None
    """ISO date after which the declared evidence counts for nothing."""
    context_tokens: int = Field(default=0, ge=0)
    slots: int = Field(default=0, ge=0)
    token_ids: bool = False
    """`server` only: it is a vLLM of 0.10.2 or newer, which can be asked for token ids, so that a broken stream can be carried
    on at another server with the same model under the same name."""
    price: Prices = Prices()

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not re.match(r"https?://[^/\s?#@]+(/[^\s?#]*)?\Z|unix:///[^\s?#]*[^\s?#/]\Z", value):
            raise ValueError(
                "a base URL looks like https://host[:port][/path] or unix:///path/to/socket, without user, query or fragment"
            )
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
        if self.kind == "cloud" and self.url.startswith("unix:"):
            raise ValueError("url: a unix socket is on this machine, and a cloud target is outside")
        if self.tls is not None and not self.url.startswith("https:"):
            raise ValueError("tls: the url must begin with https://")
        if self.token_ids and self.kind != "server":
            raise ValueError("token_ids: only a `server` can be asked for them")
        if self.kind == "cloud" and self.task == "transcription":
            raise ValueError("the egress passes JSON only: a cloud target cannot have the task `transcription`")
        for model in self.models:
            _check_model(model)
        if self.kind == "server" and self.dialect != "openai":
            raise ValueError("only a cloud target has a `dialect`: the egress translates, nobody else")
        if self.task == "pooling" and self.dialect not in ("openai", "azure"):
            raise ValueError(f"a target of the dialect `{self.dialect}` offers chat only")
        check_provider(self)
        return self


class Redact(_Strict):
    """Sensitive values leave as placeholders and come back in the answer; what is left may go where `then` says."""

    then: Name
    """The tag of a redacted request, in place of the ceiling's; tags of the request still tighten it."""


class Allowance(_Strict):
    """What a key, or all keys of a tenant together, may use; over all router replicas. 0: no limit."""

    requests_per_minute: int = Field(default=0, ge=0)
    """Per minute of the clock; what the minute before used weighs on it in part, so that its turn gives no second burst."""
    tokens_per_minute: int = Field(default=0, ge=0)
    concurrent_requests: int = Field(default=0, ge=0)
    daily_tokens: int = Field(default=0, ge=0)
    """Prompt and answer tokens per UTC day."""
    monthly_tokens: int = Field(default=0, ge=0)
    """Per UTC month."""
    daily_usd: float = Field(default=0.0, ge=0)
    """At the prices of `models` and `targets`."""
    monthly_usd: float = Field(default=0.0, ge=0)


class Key(Allowance, Access):
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
    timeout_ms: int = Field(default=0, ge=0)
    """Bound on a whole request of this key; the header `x-request-timeout-ms` goes before it. 0: `timeouts.request_s`."""
    continuation: bool | None = None
    """Whether this key's broken streams may be carried on at another replica. Default: the top-level `continuation`."""
    vote: bool = False
    """Whether this key may have several models vote on an answer (`x-tidegate-mode: vote`)."""
    when_client_leaves: Literal["cut", "finish"] | None = None
    """What becomes of an answer whose client has gone. Default: the top-level `when_client_leaves`."""
    redact: Redact | None = None
    """Lets requests with sensitive values go further than the ceiling once the values are taken out."""
    cache: KeyCache | None = None
    """Whether this key's questions may be answered from the response cache: `true`, or a mapping. Default: they never are."""

    _id = field_validator("id")(_check_name)
    _cache = field_validator("cache", mode="before")(read_switch)

    @model_validator(mode="after")
    def _one_source(self) -> Key:
        if (self.sha256 is None) == (self.sha256_file is None):
            raise ValueError("give exactly one of `sha256` and `sha256_file`")
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise ValueError("sha256 is 64 lower-case hex digits: `tidegate keys create NAME` prints it")
        return self


class BreakGlass(_Strict):
    """Signed relaxations: who may approve, how many must, and for how long one may last."""

    file: str
    """Relaxations in force, one JSON object a line (relative to TIDEGATE_HOME); read anew whenever it changes."""
    approvers: dict[Name, str]
    """Ed25519 public keys in hex, by the name of the person."""
    required: int = Field(default=2, ge=2)
    max_hours: float = Field(default=8.0, gt=0, le=168)
    policies: str | None = None
    """With this file (relative to TIDEGATE_HOME), a new policy that lets anything go further than the one that runs is taken only
    once the same number of approvers has signed it there (`tidegate policy approve`)."""

    @model_validator(mode="after")
    def _enough(self) -> BreakGlass:
        for name, key in self.approvers.items():
            if not _SHA256.match(key):
                raise ValueError(f"approvers.{name}: an Ed25519 public key is 64 lower-case hex digits")
        if len(set(self.approvers.values())) < len(self.approvers):
            raise ValueError("approvers: two people must not share a key")
        if len(self.approvers) < self.required:
            raise ValueError(f"approvers: {self.required} are required, {len(self.approvers)} are named")
        return self


class Lineage(_Strict):
    """What is remembered of conversations, as keyed hashes, so that follow-ups inherit their labels."""

    path: str | None = None
    """A SQLite file that the routers of one machine share (relative to TIDEGATE_HOME). Default: memory only."""
    entries: int = Field(default=200_000, ge=1000)
    keep_days: float = Field(default=30.0, gt=0)


class Slo(_Strict):
    """What a request may wait. Predicted above `ttft_ms`: the cluster counts as saturated (spill, if permitted).

    Predicted above `max_wait_ms`: refused at once with `Retry-After`.
    """

    ttft_ms: float = Field(default=2000, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    """What each token after the first may take, on average over an answer; not set: no limit."""
    stretch: float = Field(default=2.0, ge=0)
    """A long prompt may take this many times its own prefill on an idle engine, where that is more than `ttft_ms`."""
    goal: float = Field(default=0.95, gt=0, lt=1)
    """Share of requests that are to meet both limits; placement and spill grow stricter until they do."""
    max_wait_ms: float = Field(default=30000, gt=0)
    resume_ratio: float = Field(default=0.7, gt=0, le=1)
    """Spilling ends once the predicted wait is below this share of `ttft_ms` (hysteresis)."""


class Autoscaling(_Strict):
    """How long a need has to last before engines are added or taken away; for `replicas` with a `max_count`."""

    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)


class Admission(_Strict):
    """The queue of requests that no allowed target can serve within `slo.ttft_ms` yet, per router replica."""

    max_waiting: int = Field(default=1000, ge=0, le=100_000)
    """How many requests may wait at once; 0: none does, they wait in the engines as long as `slo.max_wait_ms` lets them."""
    max_waiting_mib: int = Field(default=256, ge=1)
    """Bound on the bodies of the requests that wait, together."""
    shares: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """Shares of tenants that wait at the same time; 1 for those not named."""


class Spill(_Strict):
    """Bounds on what goes outside, over all keys, per router replica."""

    enabled: bool = True
    daily_budget_usd: float | None = Field(default=None, ge=0)


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
    tls: Tls | None = None
    """How the router speaks TLS to it, where `url` is an `https://` address (a TLS proxy before the egress)."""

    @model_validator(mode="after")
    def _over_tls(self) -> Egress:
        if self.tls is not None and not (self.url or "").startswith("https:"):
            raise ValueError("tls: `url` must begin with https://")
        return self


class Secret(_Strict):
    """Where the cluster secret (32 bytes or more, any text) comes from. Default: made anew when the cluster starts."""

    env: str | None = None
    file: str | None = None


class Jwt(_Strict):
    """Bearer tokens of an OIDC issuer, as an alternative to keys."""

    issuer: str
    audience: str
    """Must be among a token's audiences: one that was made for another service opens nothing here."""
    jwks_file: str
    """The issuer's public keys (a JWK set), relative to TIDEGATE_HOME; read again when it changes. Nothing is fetched."""
    algorithms: list[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]] = [
        "RS256",
        "ES256",
    ]
    key: Name
    """The configured key whose scopes and limits every bearer has."""
    tenant_claim: str | None = None
    """The claim that names the tenant. Default: the key's tenant."""
    scopes_claim: str | None = None
    """The claim that narrows the key's scopes: an object with any of `models`, `residency`, `spill`, `cidr`, `priority`. A token
    whose claim cannot be read opens nothing; one without it has the key's scopes."""
    leeway_s: int = Field(default=0, ge=0, le=300)
    """How far the clocks of issuer and router may differ."""


class Store(_Strict):
    """Where keys and the use of limits are kept. One router node: a file. Several: a PostgreSQL server that all reach."""

    url: str | None = None
    """`postgresql://user@host/name`; the password comes from `PGPASSWORD` or `~/.pgpass`. Default: SQLite, in `path`."""
    path: str = ".tidegate/store.db"
    """Relative to TIDEGATE_HOME."""


class Retention(_Strict):
    """How long the audit log's entries are kept. A legal hold (`tidegate audit hold`) goes before it."""

    days: float | None = Field(default=None, gt=0)
    """Entries older than this are removed; their hashes stay, so that the log still verifies. Default: all are kept."""
    profiles: list[Literal["ai-act", "hipaa", "pci-dss", "dora"]] = []
    """Rules whose floor `days` must not undercut."""

    @model_validator(mode="after")
    def _floor(self) -> Retention:
        for profile in self.profiles:
            if self.days is not None and self.days < RETENTION_FLOOR_DAYS[profile]:
                raise ValueError(f"`{profile}` asks for at least {RETENTION_FLOOR_DAYS[profile]} days, not {self.days:g}")
        return self


class Audit(_Strict):
    """The audit log of every router: an append-only Merkle log on its own disk."""

    enabled: bool = True
    """Switched off, nothing is recorded, and nothing is sent to cloud targets either."""
    dir: str = ".tidegate/audit"
    """Relative to TIDEGATE_HOME. Each router process takes a directory of its own in it."""
    window_ms: float = Field(default=100, gt=0, le=100)
    """The longest time the record of a local request may wait in memory."""
    when_unwritable: Literal["serve", "refuse"] = "serve"
    """What becomes of local requests while the log cannot be written. Nothing is sent outside then in any case."""
    signing_key: str | None = None
    """A file with the Ed25519 seed in hex; made when missing. Default: `signing.key` in `dir`."""
    checkpoint_copies: list[str] = []
    """Files, best on another machine's disk, that a signed checkpoint is appended to every minute."""
    retention: Retention = Retention()


class Config(_Strict):
    """The whole configuration; see the README for a commented example."""

    listen: PublicListen = PublicListen()
    admin: Listen = Listen()
    router: RouterOptions = RouterOptions()
    zones: dict[Name, Zone] = Field(min_length=1)
    duties: list[Name] = []
    residency: Residency = Residency()
    models: list[Model] = []
    targets: list[ExternalTarget] = []
    keys: list[Key] = []
    slo: Slo = Slo()
    admission: Admission = Admission()
    autoscaling: Autoscaling = Autoscaling()
    spill: Spill = Spill()
    complexity: Complexity = Complexity()
    classify: Classify = Classify()
    timeouts: Timeouts = Timeouts()
    egress: Egress = Egress()
    secret: Secret = Secret()
    lineage: Lineage = Lineage()
    break_glass: BreakGlass | None = None
    policy_file: str | None = None
    """A YAML file (relative to TIDEGATE_HOME) whose keys replace those of this configuration, watched while it runs."""
    audit: Audit = Audit()
    capture: Capture | None = None
    cache: Cache | None = None
    """The response cache, for keys with `cache`. Default: there is none."""
    store: Store = Store()
    jwt: Jwt | None = None
    tenants: dict[Name, Allowance] = {}
    """Limits over all keys of a tenant."""
    continuation: bool = True
    """Carry a stream that breaks on at another replica of the same model, exactly or not at all (`router.wire.continuation`).
    For that, engines send the ids of their tokens with every event, and the router takes them out again."""
    when_client_leaves: Literal["cut", "finish"] = "cut"
    """`cut`: the engine is stopped at once; what it has done by then is not known exactly. `finish`: it finishes the answer for
    nobody, and the usage that it counts is recorded and charged."""
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)

    @field_validator("zones", "duties")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value:
            _check_name(name)
        return value

    @model_validator(mode="after")
    def _cross_check(self) -> Config:
        check_references(self)
        return self
