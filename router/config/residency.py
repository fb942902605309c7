"""Where bytes may be: zones, tags, classification, conversations, and who may relax what for a while."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from router.config.check import CATEGORIES, KINDS, LOCAL, nearest
from router.config.strict import SHA256, Name, Strict
from router.residency.classify.countries import COUNTRIES


class Zone(Strict):
    """A place bytes may be. `external` ones are outside the cluster: nothing goes there unless a label and a key say so."""

    external: bool = False
    """Outside the cluster: a provider's."""


class Tag(Strict):
    """A residency tag: the zones (or regions) that may process and store, and the duties a target must carry."""

    process: list[Name]
    """Zones and regions that may process what carries this tag."""
    store: list[Name] | None = None
    """Those that may store it. Default: as `process`."""
    require: list[Name] = []
    """Duties that a place must have taken on."""
    sensitive: bool = False
    """Refuses the configuration should any external zone, named or inside a region, be open to this tag."""
    requires_lineage: bool = False
    """A continued conversation that the router cannot trace back to its beginning is held to this tag."""


class Residency(Strict):
    """Tags and the label of a request that carries none."""

    regions: dict[Name, list[Name]] = {}
    """Names for sets of zones (and of regions declared before), to write tags with."""
    tags: dict[Name, Tag] = {}
    default: Name = LOCAL
    """The tag of keys that name none; `local` is every zone that is not external."""
    tenants: dict[Name, list[Name]] = {}
    """Tags that hold for every key of a tenant, whatever the key's own ceiling says."""
    models: dict[str, list[Name]] = {}
    """Tags that hold for every request a model answers, however the request came to that model."""
    zone_label: str = "tidegate.io/zone"
    """The Ray node label that says in which zone a node stands."""


class ClassifyRule(Strict):
    """What is found tightens: `if` names kinds (`iban`, `passport`, ...) or categories (`pii`, `phi`, `financial`, `secret`)."""

    model_config = ConfigDict(populate_by_name=True)

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


class DetectorSocket(Strict):
    """A detector in a process of its own, e.g. around Presidio; its protocol stands in `router.residency.classify.detector`."""

    socket: str
    timeout_ms: int = Field(default=200, ge=1, le=60000)


class Classify(Strict):
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

    @field_validator("countries")
    @classmethod
    def _known_countries(cls, value: list[str] | None) -> list[str] | None:
        for code in value or ():
            if code not in COUNTRIES:
                known = " ".join(sorted(COUNTRIES))
                raise ValueError(f"no numbers of a country `{code[:64]}` are known here, only of: {known}")
        return value


class Redact(Strict):
    """Sensitive values leave as placeholders and come back in the answer; what is left may go where `then` says."""

    then: Name
    """The tag of a redacted request, in place of the ceiling's; tags of the request still tighten it."""


class BreakGlass(Strict):
    """Signed relaxations: who may approve, how many must, and for how long one, or the leave for a wider policy, may last."""

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
            if not SHA256.match(key):
                raise ValueError(f"approvers.{name}: an Ed25519 public key is 64 lower-case hex digits")
        if len(set(self.approvers.values())) < len(self.approvers):
            raise ValueError("approvers: two people must not share a key")
        if len(self.approvers) < self.required:
            raise ValueError(f"approvers: {self.required} are required, {len(self.approvers)} are named")
        return self


class Lineage(Strict):
    """What is remembered of conversations, as keyed hashes, so that follow-ups inherit their labels."""

    path: str | None = None
    """A SQLite file that the routers of one machine share (relative to TIDEGATE_HOME). Default: memory only."""
    entries: int = Field(default=200_000, ge=1000)
    keep_days: float = Field(default=30.0, gt=0)
