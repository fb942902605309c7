"""Models and the replicas that serve them; servers and clouds that are there already."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from router.config.access import Credential
from router.config.providers import check_provider
from router.config.strict import Name, Strict, check_model, check_name

_METRICS = "/metrics"
_PATH = re.compile(r"/[\w.~%-][\w.~%/-]*", re.ASCII)


class Replicas(Strict):
    """How many engines of a model run in one zone, and what each of them takes."""

    zone: Name
    count: int = Field(default=1, ge=1, le=512)
    max_count: int | None = Field(default=None, ge=1, le=512)
    """With it, Serve keeps between `count` and so many engines, by the wait that routers predict (`autoscaling`)."""
    gpus: float = Field(default=1, ge=0)
    """Of each engine: the product of the parallel sizes in `args`; 0 runs it on the CPU."""
    cpus: float = Field(default=1, ge=0)
    memory_gib: float | None = Field(default=None, gt=0)
    """Host memory one engine needs; `doctor` adds these up before anything starts. Default: 4 on a CPU, else 8."""
    duties: list[Name] = []

    @model_validator(mode="after")
    def _bounds(self) -> Replicas:
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError("`max_count` is the most there may be: not below `count`")
        return self


class Prices(Strict):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class Adapter(Strict):
    """A LoRA adapter that every engine of its model can apply. Requests name it as their model."""

    id: str
    source: str
    """A directory (relative to TIDEGATE_HOME) with `adapter_config.json`, or an id that vLLM can load."""

    _id = field_validator("id")(check_model)


class Model(Strict):
    """A model that Ray Serve runs with vLLM. `args` and `env` are vLLM's own, passed on as they are."""

    id: str
    source: str
    """A directory (relative to TIDEGATE_HOME) or a model id that vLLM can load."""
    tier: Name = "small"
    task: Literal["generate", "pooling", "transcription"] = "generate"
    args: list[str] = []
    """vLLM's options, one argument an entry."""
    env: dict[str, str] = {}
    """Variables of the engines' environment."""
    replicas: list[Replicas] = Field(min_length=1)
    startup_timeout_s: float = Field(default=1800, gt=0)
    """An engine that does not answer by then has failed to start."""
    stall_timeout_s: float = Field(default=120, ge=0)
    """An engine whose core has not answered for so long hangs, and is replaced, though its server says that it is well. It
    answers between two steps: none takes nearly as long. 0: never."""
    price: Prices = Prices()
    """What its tokens cost, for budgets in money and for `tidegate report cost`."""
    profile: str | None = None
    """What a step of its engines costs: a JSON file (relative to TIDEGATE_HOME) that `tidegate plan --calibrate` wrote. Default:
    a generic guess. Either is corrected, replica by replica, by what is seen."""
    adapters: list[Adapter] = []
    """Residency tags of this model hold for them as well; a key that lists models must name them."""

    _id = field_validator("id")(check_model)

    @field_validator("args", mode="before")
    @classmethod
    def _strings(cls, value: Any) -> Any:
        return [str(item) for item in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _generates(self) -> Model:
        if self.adapters and self.task != "generate":
            raise ValueError(f"adapters: a model of the task `{self.task}` cannot have them")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What requests can name: the model, and its adapters."""
        return (self.id, *(adapter.id for adapter in self.adapters))


class Tls(Strict):
    """How TLS is spoken to an `https://` address. The peer's certificate and name are verified in any case. What is renewed in
    its file holds for the next connection; an authority that was taken out is trusted until the next start."""

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


def check_url(value: str) -> str:
    """A base URL without its last slash.

    Raises:
        ValueError: it is none.
    """
    if not re.match(r"https?://[^/\s?#@]+(/[^\s?#]*)?\Z|unix:///[^\s?#]*[^\s?#/]\Z", value):
        raise ValueError(
            "a base URL looks like https://host[:port][/path] or unix:///path/to/socket, without user, query or fragment"
        )
    parts = urlsplit(value)  # it says itself what is wrong with an IPv6 address
    if not parts.netloc.isascii():
        raise ValueError("a host's name in a URL is ASCII: write another alphabet's as xn--...")
    if parts.port == 0:
        raise ValueError("port 0 is no port to connect to")
    return value.rstrip("/")


def check_tls(url: str, tls: Tls | None) -> None:
    """Files for TLS mean something for an https URL only.

    Raises:
        ValueError: they are given for another one.
    """
    if tls is not None and not url.startswith("https:"):
        raise ValueError("tls: the url must begin with https://")


class Provider(Strict):
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


class Prefill(Strict):
    """A second vLLM that computes the prompts of a `server` and hands their keys and values over to it, through one of vLLM's
    connectors that go by `kv_transfer_params`, such as NIXL. It stands in the same zone, under the same promises."""

    url: str
    tls: Tls | None = None
    min_tokens: int = Field(default=1024, ge=1)
    """A request with less of its prompt left to compute goes to the server at once."""

    _plain_url = field_validator("url")(check_url)

    @model_validator(mode="after")
    def _check(self) -> Prefill:
        check_tls(self.url, self.tls)
        return self


class ExternalTarget(Strict):
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
    adapters: dict[str, str] = {}
    """`server` only: which of these are LoRA adapters, and of which other one of these: their caches are kept apart."""
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
    """The longest prompt and answer it takes; 0: not known."""
    slots: int = Field(default=0, ge=0)
    """How many requests it works on at a time; 0: not known."""
    token_ids: bool = False
    """`server` only: it is a vLLM of 0.10.2 or newer, which can be asked for token ids, so that a broken stream can be carried
    on at another server with the same model under the same name."""
    cache_salt: bool | None = None
    """`server` only: whether it takes a `cache_salt`, as vLLM does: then tenants cannot time each other's prompts in its cache.
    Left out: where `token_ids` or `prefill` say that it is a vLLM."""
    price: Prices = Prices()
    prefix_cache: bool = True
    """`server` only: false where nothing of a prompt is kept for the next one, so that requests that begin alike need not meet at
    one server. A vLLM whose gauges are read says it itself."""
    metrics: bool | str = True
    """`server` only: whether, or under which path, its gauges are read if it is a vLLM (`true`: under `/metrics`)."""
    prefill: Prefill | None = None
    """`server` only: it is half of a pair, and this is the other half."""

    _plain_url = field_validator("url")(check_url)
    _id = field_validator("id")(check_name)

    @field_validator("metrics")
    @classmethod
    def _plain_path(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not _PATH.fullmatch(value):
            raise ValueError("metrics: true, false, or a path that begins with `/`, such as /metrics")
        return value

    @property
    def metrics_path(self) -> str:
        """Where its gauges are, under its URL; "" where none are read."""
        if self.kind != "server" or self.metrics is False:
            return ""
        return _METRICS if self.metrics is True else self.metrics

    @property
    def is_salted(self) -> bool:
        """Whether requests to it carry a `cache_salt`."""
        return self.token_ids or self.prefill is not None if self.cache_salt is None else self.cache_salt

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
        check_tls(self.url, self.tls)
        if self.prefill is not None and (self.kind != "server" or self.task != "generate"):
            raise ValueError("prefill: only a `server` that generates can be half of a pair")
        if self.token_ids and self.kind != "server":
            raise ValueError("token_ids: only a `server` can be asked for them")
        if self.cache_salt is not None and self.kind != "server":
            raise ValueError("cache_salt: only a `server` can be sent one")
        if not self.prefix_cache and self.kind != "server":
            raise ValueError("prefix_cache: only of a `server` it matters")
        if self.metrics is not True and self.kind != "server":
            raise ValueError("metrics: only a `server` has them read")
        if self.kind == "cloud" and self.task == "transcription":
            raise ValueError("the egress passes JSON only: a cloud target cannot have the task `transcription`")
        for model in self.models:
            check_model(model)
        self._check_adapters()
        if self.kind == "server" and self.dialect != "openai":
            raise ValueError("only a cloud target has a `dialect`: the egress translates, nobody else")
        if self.task == "pooling" and self.dialect not in ("openai", "azure"):
            raise ValueError(f"a target of the dialect `{self.dialect}` offers chat only")
        check_provider(self)
        return self

    def _check_adapters(self) -> None:
        if self.adapters and self.kind != "server":
            raise ValueError("adapters: only a `server` has them; what a provider serves is a model to us")
        for name, base in self.adapters.items():
            for what, named in (("adapter", name), ("base model", base)):
                if named not in self.models:
                    raise ValueError(f"adapters: the {what} `{named}` is not among this server's `models`")
            if base in self.adapters:
                raise ValueError(f"adapters: `{name}` is said to be made for `{base}`, which is an adapter itself")
