"""The shape of the configuration, in pydantic: what each key is called, what it may hold, and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from router.config.access import Access, Listen, PublicListen, place_of
from router.config.cache import Cache, KeyCache, read_switch
from router.config.capture import Capture
from router.config.check import check_references, check_startable
from router.config.complexity import Complexity
from router.config.ledger import Audit, Store
from router.config.models import ExternalTarget, Model, Tls, check_url
from router.config.residency import BreakGlass, Classify, Lineage, Redact, Residency, Zone
from router.config.strict import SHA256, Name, Strict, check_name

RECORDED = {"recorded": True}
"""The context to validate a configuration in that is only read, not started with."""


class RouterOptions(Strict):
    """How many router replicas share the public port, and on which nodes (one per node that carries `label_selector`)."""

    replicas: int = Field(default=1, ge=1, le=64)
    cpus: float = Field(default=0.5, ge=0)
    label_selector: dict[str, str] = {}
    prefix_index_mib: int = Field(default=256, ge=8)
    """Bound on the memory in which a router keeps what its replicas' prefix caches hold."""
    peers: list[str] = []
    """For routers without Ray: the addresses (`10.0.0.1:7001`), the same list for all of them, at which they tell each other of
    their requests by UDP. Each takes the first that it can listen at. They need the same `secret`. Under Ray routers find each
    other."""

    @field_validator("peers")
    @classmethod
    def _places(cls, value: list[str]) -> list[str]:
        for text in value:
            place_of(text)
        if len(set(map(place_of, value))) < len(value):
            raise ValueError("an address stands here twice, and two routers cannot share one")
        return value


class Allowance(Strict):
    """What a key, or all keys of a tenant together, may use; over all router replicas. 0: no limit."""

    requests_per_minute: int = Field(default=0, ge=0, le=10**15)
    """Per minute of the clock; what the minute before used weighs on it in part, so that its turn gives no second burst."""
    tokens_per_minute: int = Field(default=0, ge=0, le=10**15)
    concurrent_requests: int = Field(default=0, ge=0, le=10**15)
    daily_tokens: int = Field(default=0, ge=0, le=10**15)
    """Prompt and answer tokens per UTC day."""
    monthly_tokens: int = Field(default=0, ge=0, le=10**15)
    """Per UTC month."""
    daily_usd: float = Field(default=0.0, ge=0, le=10**9)
    """At the prices of `models` and `targets`."""
    monthly_usd: float = Field(default=0.0, ge=0, le=10**9)


class Key(Allowance, Access):
    """A client's key. Only its SHA-256 is written here (`tidegate keys create` prints one)."""

    id: Name
    sha256: str | None = None
    sha256_file: str | None = None
    tenant: Name = "default"
    """Whose it is. Keys of a tenant share its limits, its turn and its caches; those that name none are of one."""
    residency: list[Name] | Name | None = None
    """The ceiling: one tag, or several that all hold. Default: `residency.default`."""
    models: list[str] | None = None
    """Model ids and tiers this key may use. Default: all."""
    spill: bool = False
    """Whether this key's requests may leave for a cloud target when the cluster is saturated."""
    spill_daily_usd: float | None = Field(default=None, ge=0)
    """What that may cost per UTC day, at the prices of `targets`, over all router replicas. Default: only
    `spill.daily_budget_usd` bounds it."""
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

    _id = field_validator("id")(check_name)
    _cache = field_validator("cache", mode="before")(read_switch)

    @model_validator(mode="after")
    def _one_source(self) -> Key:
        if (self.sha256 is None) == (self.sha256_file is None):
            raise ValueError("give exactly one of `sha256` and `sha256_file`")
        if self.sha256 is not None and not SHA256.match(self.sha256):
            raise ValueError("sha256 is 64 lower-case hex digits: `tidegate keys create NAME` prints it")
        return self


class Slo(Strict):
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


class Autoscaling(Strict):
    """How long a need has to last before engines are added or taken away; for `replicas` with a `max_count`."""

    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)


class Admission(Strict):
    """The queue of requests that no allowed target can serve within `slo.ttft_ms` yet, per router replica."""

    max_waiting: int = Field(default=1000, ge=0, le=100_000)
    """How many requests may wait at once; 0: none does, they wait in the engines as long as `slo.max_wait_ms` lets them."""
    max_waiting_mib: int = Field(default=256, ge=1)
    """Bound on the bodies of the requests that wait, together."""
    shares: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """Shares of tenants that wait at the same time; 1 for those not named."""


class Spill(Strict):
    """Bounds on what goes outside, over all keys."""

    enabled: bool = True
    daily_budget_usd: float | None = Field(default=None, ge=0)
    """What it may cost per UTC day, at the prices of `targets`, over all router replicas. Default: no bound."""


class Timeouts(Strict):
    """Limits in seconds: connecting, the wait for the first byte (of a stream, for its first token), and a pause between two."""

    connect_s: float = Field(default=2.0, gt=0)
    first_byte_s: float = Field(default=600.0, gt=0)
    idle_s: float = Field(default=120.0, gt=0)
    request_s: float = Field(default=0.0, ge=0)
    """The whole request, from its last byte to the answer's; 0: no limit. A key's or a request's own bound goes before it."""


class Egress(Strict):
    """The process that holds cloud credentials. Without `url`, one is started beside the router."""

    url: str | None = None
    tls: Tls | None = None
    """How the router speaks TLS to it, where `url` is an `https://` address (a TLS proxy before the egress)."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @model_validator(mode="after")
    def _over_tls(self) -> Egress:
        if self.tls is not None and not (self.url or "").startswith("https:"):
            raise ValueError("tls: `url` must begin with https://")
        return self


class Secret(Strict):
    """Where the cluster secret (32 bytes or more, any text) comes from. Default: made anew when the cluster starts."""

    env: str | None = None
    file: str | None = None


class Jwt(Strict):
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


class Config(Strict):
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
    policy_file: str | None = Field(default=None, min_length=1)
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
    max_audio_bytes: int | None = Field(default=None, ge=1024)
    """The same for `/v1/audio/transcriptions`. Default: `max_body_bytes`, and no less than vLLM's 25 MiB of sound."""
    max_held_bytes: int = Field(default=2 * 1024**3, ge=1024)
    """How many bytes of large bodies a router holds at a time, over all connections, until their requests are answered."""

    @field_validator("zones", "duties")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value:
            check_name(name)
        return value

    @model_validator(mode="after")
    def _cross_check(self, info: ValidationInfo) -> Config:
        check_references(self)
        if info.context != RECORDED:
            check_startable(self)
        return self
