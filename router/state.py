"""What one router process holds while it runs: explicit, passed around, no singletons."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from router.complexity.books import ComplexityBooks
from router.complexity.learning import Learning
from router.complexity.stages import Stages, plan_stages
from router.config import Config, ConfigError, home
from router.decision import Facts
from router.engine_profiles import profiles_of
from router.fixed_targets import retargeter
from router.identity.books import NOTHING, Reservation
from router.identity.limit import Limit
from router.identity.limits import UNBOUNDED_ANSWER_TOKENS, Limits
from router.identity.networks import compile_networks
from router.identity.stored import StoredKeys
from router.identity.tokens import TokenVerifier
from router.ledger.capturing import Capture
from router.ledger.clock import ClockWatch, in_words
from router.ledger.cost import PriceList
from router.ledger.log import AuditLog
from router.ledger.metrics import Metrics
from router.ledger.policies import policy_text
from router.ledger.receipts import Receipt, ReceiptBook, used_tokens
from router.ledger.records import CLOCK, RELAX
from router.media_tokens import MediaTokens
from router.placement.adapters import AdapterBook
from router.placement.fleet import Fleet
from router.placement.prefix import CHUNK_COST, PrefixIndex
from router.placement.targets import NO_PREFILL, Kind, Report, Target, View
from router.placement.trust import Verdict
from router.poison import PoisonBook
from router.policy import Policy
from router.prefixes import Prefixes, PromptChains
from router.residency.break_glass import Relaxation
from router.residency.cache_salt import FIELD, SALTED, cache_salt, salt_key
from router.residency.classify.rule import Classifier, make_classifier
from router.residency.conversation import lineage_key
from router.residency.guard import NONE_STORED, PASS_LIFETIME_S, ROUTER, Pass, StoredCeilings, derive_target_key, issue_pass
from router.residency.inflight import InFlight
from router.residency.label import Evidence, Label
from router.residency.lineage import LineageBook
from router.residency.lineage_store import LineageStore
from router.response_cache.book import open_cache
from router.response_cache.rule import place_of_cache
from router.waiting import WaitingRoom
from router.waiting_metrics import WaitingCollector
from router.wire.bodies import Bodies
from router.wire.pool import Pool
from router.wire.retry_budget import RetryBudget
from router.wire.tls import TlsContexts

_log = logging.getLogger("tidegate.router")

FindReceipt = Callable[[str], Awaitable[dict[str, Any] | None]]


def _open_lineage(config: Config) -> LineageStore | None:
    """The store of conversations' labels, where the configuration names one.

    Raises:
        ConfigError: the file cannot be used.
    """
    if config.lineage.path is None:
        return None
    try:
        return LineageStore(home() / config.lineage.path, config.lineage.keep_days * 86400, time.time())
    except OSError as error:
        raise ConfigError(f"lineage.path: {error}") from None


def _setting_of(policy: Policy) -> str:
    """Names the tiers and their models: ratings of others say nothing about these."""
    tiers = [(tier, *policy.tier_models.get(tier, ())) for tier in policy.tiers]
    return hashlib.sha256(msgspec.json.encode(tiers)).hexdigest()[:16]


def _says(classifier: Classifier | None, config: Config, policy: Policy) -> object:
    """What classification makes of a request under a policy, in names: two that are equal say the same of everything."""
    if classifier is None:
        return None
    return config.classify.model_copy(update={"rules": [], "unknown": None}), classifier.rules.in_names(policy.label_text)


class RouterState:
    """The parts of a running router.

    Args:
        config: the validated configuration.
        policy: the same, compiled.
        secret: the cluster secret that passes are signed with.
        credentials: bearer tokens of servers that already run, by target id.
        router_id: names this process in receipts and headers.

    Raises:
        ConfigError: a file for TLS towards a target, or the keys of the JWT issuer, cannot be used.
    """

    def __init__(
        self, config: Config, policy: Policy, secret: bytes, credentials: Mapping[str, str], router_id: str = "router"
    ) -> None:
        self.config = config
        self.policy = policy
        self.router_id = router_id
        profiles = profiles_of(config, home())
        self.fleet = Fleet(policy.daily_budget_usd, profiles, goal=policy.slo.goal, tpot_s=policy.slo.tpot_s)
        self.limits = Limits()
        self.stored_keys: StoredKeys | None = None
        """Keys that are not in the configuration; None without a store."""
        self.proxies = compile_networks(config.listen.trusted_proxies)
        """Whose word for a client's address counts."""
        self.tokens = None if config.jwt is None else TokenVerifier(config.jwt, policy, home())
        self.prices = PriceList(config)
        self.receipts = ReceiptBook()
        self.bodies = Bodies(config.max_held_bytes)
        """Of large requests, over all connections."""
        self.audit: AuditLog | None = None
        """Records decisions and receipts; None where it is switched off, and nothing may be sent outside then."""
        self.capture: Capture | None = None
        """Keeps payloads of those who opted in; None where it is switched off."""
        self.prefixes = Prefixes(secret, PrefixIndex(config.router.prefix_index_mib * 1024 * 1024 // CHUNK_COST))
        self.adapters = AdapterBook()
        self.metrics = Metrics(self.fleet, self.trust_of, router_id)
        tls = TlsContexts(home())
        tls.prepare(config)
        self.pool = Pool(config.timeouts.connect_s, tls)
        self.poison = PoisonBook()
        self.media = MediaTokens()
        self.retry_budget = RetryBudget(time.monotonic())
        self.classifier = make_classifier(config.classify, policy.tags, secret)
        self.complexity = ComplexityBooks(config.complexity.pin_conversations, config.complexity.pin_margin)
        self.stages: Stages | None = None
        """Cascade, vote, experiments, feedback; None where none is configured."""
        self._plan_stages()
        self.resting_halves: dict[str, float] = {}
        """Pairs whose half for prompts failed, by incarnation, and until when (loop time) it is left alone."""
        self.shadows_running = 0
        self.labels_running = 0
        self.draining = False
        self.find_elsewhere: FindReceipt | None = None
        """Asks the other router replicas for a receipt; None where there are none."""
        self.cache = None if config.cache is None else open_cache(config.cache)
        """The response cache, for keys that ask for it; None without one."""
        if self.cache is not None:
            self.metrics.watch_cache(self.cache.measure)
        self.cache_secret = secrets.token_bytes(32)
        self.cache_place = place_of_cache(config, policy.vocabulary)
        self._stands_in: tuple[str, ...] = ()
        self._secret = secret
        self._credentials = credentials
        self._keys: dict[str, bytes] = {}
        self.inflight = InFlight(policy)
        self.lineage = LineageBook(config.lineage.entries, _open_lineage(config))
        self.lineage_key = lineage_key(secret)
        self.salt_key = salt_key(secret)
        self.policy_alert = ""
        """Why the latest policy was not taken; empty while the one that runs is the latest."""
        self._clock = ClockWatch()
        self.waiting = WaitingRoom(self)
        self.metrics.add(WaitingCollector(self.waiting))
        self._tasks: set[asyncio.Task[None]] = set()
        self._label_texts: dict[Label, str] = {}
        self._salts: dict[tuple[str, Label, str], str] = {}

    def __repr__(self) -> str:
        return f"RouterState(router_id={self.router_id!r}, epoch={self.policy.epoch!r})"

    def adopt(self, config: Config, policy: Policy, now: float) -> int:
        """Run under a new policy from now on: one synchronous step, so nothing is ever decided under half of it.

        Args:
            config: the new configuration, validated.
            policy: the same, compiled.
            now: UNIX time in seconds.

        Returns:
            How many running exchanges it forbids; they are cut.
        """
        tokens = None if self.tokens is None else self.tokens.under(policy)  # `jwt` cannot change while engines run
        profiles = profiles_of(config, home())
        if self.audit is not None and policy.epoch != self.policy.epoch:
            # First: what is cut decides anew at once, and the record of that must find this policy before it.
            self.audit.policy(policy.epoch, policy_text(config), policy.label_text)
        if self.stored_keys is not None:
            self.stored_keys.adopt(config, policy)
        retarget = retargeter(config, self.policy, policy)
        self.fleet.adopt(retarget, policy.daily_budget_usd, profiles)
        self.prices = PriceList(config)
        unread = None
        if (config.classify, policy.tags, policy.vocabulary) != (self.config.classify, self.policy.tags, self.policy.vocabulary):
            said = _says(self.classifier, self.config, self.policy)
            self.classifier = make_classifier(config.classify, policy.tags, self._secret)
            if self.classifier is not None and _says(self.classifier, config, policy) != said:
                unread = self.classifier.rules.tightest
        known = frozenset(self.policy.relaxations)
        pins = config.complexity.pin_conversations, config.complexity.pin_margin
        self.complexity.adopt(*pins, tiers_changed=policy.tiers != self.policy.tiers)
        self.config, self.policy, self.tokens = config, policy, tokens
        self._plan_stages()
        self.record_relaxations(known)
        self.policy_alert = ""
        self._label_texts.clear()
        self._salts.clear()
        self._empty_cache()
        self.waiting.adopt(config)
        cut = self.inflight.adopt(policy, self._evidence(), now, unread)
        self.waiting.recheck(now)
        self.metrics.policy_offered(taken=True)
        self.metrics.revoked(cut)
        return cut

    def _plan_stages(self) -> None:
        """What may follow the first choice of a model under this policy; what was learnt is kept while learning goes on."""
        self.stages = stages = plan_stages(self.config.complexity, voting=any(key.vote for key in self.config.keys))
        wanted, books = None if stages is None else stages.learning, self.complexity
        if wanted is None:
            books.learning = None
        elif books.learning is None or books.learning.setting != _setting_of(self.policy):
            books.learning = Learning(wanted, setting=_setting_of(self.policy))
        else:
            books.learning.settings = wanted

    def record_relaxations(self, known: Container[Relaxation] = ()) -> None:
        """Put the signed relaxations of the policy into the audit log, whoever brought them here; `known` ones are there."""
        for relaxation in self.policy.relaxations:
            if self.audit is not None and relaxation not in known:
                self.audit.event(RELAX, relaxation.id, msgspec.structs.asdict(relaxation))

    def stand_in(self, zone: str) -> None:
        """This router is known to stand in a zone (an undeclared one: nobody knows where), and what it keeps with it."""
        self._stands_in = (zone,)
        self._empty_cache()
        if self.cache is not None and zone not in self.config.zones:
            _log.warning("the zone of this router's node is unknown, so its response cache keeps nothing")

    def _empty_cache(self) -> None:
        """Nothing that was kept under another policy is given under this one; answers under way are not kept either."""
        self.cache_place = place_of_cache(self.config, self.policy.vocabulary, self._stands_in)
        if self.cache is not None:
            self.cache.clear()

    def refuse_policy(self, why: str) -> None:
        """The latest policy cannot be used: the one that runs stays, and everybody who looks is told."""
        _log.error("policy refused, epoch %s stays: %s", self.policy.epoch, why)
        self.policy_alert = why
        self.metrics.policy_offered(taken=False)

    def recheck(self, now: float) -> int:
        """Cut what time or changed evidence forbids by now; returns how many exchanges that were."""
        if self.cache is not None:
            self.cache.sweep()
        if jump := self._clock.look(now, time.monotonic()):
            _log.warning("%s; limits, expiries and the times in the audit log follow it", in_words(jump))
            self.fleet.clock_set(jump)
            self.waiting.clock_set(jump)
            self.lineage.clock_set(jump)
            if self.audit is not None:
                self.audit.event(CLOCK, "", {"seconds": round(jump, 3)})
        self.fleet.fade(now)
        cut = self.inflight.recheck(self._evidence(), now)
        if cut:
            self.metrics.revoked(cut)
        if self.waiting.depth:
            self.waiting.recheck(now)
        return cut

    def _evidence(self) -> Callable[[Target], Evidence | None]:
        """What is known of each target now. A replica that left the membership is finishing: its last evidence counts."""
        known = {target.incarnation: target.evidence for target in self.fleet.membership.targets}
        return lambda target: known.get(target.incarnation, target.evidence if target.kind is Kind.REPLICA else None)

    def stored_ceilings(self) -> StoredCeilings:
        """What guards must know of the keys that do not stand in the configuration."""
        if self.stored_keys is None:
            return NONE_STORED
        return self.stored_keys.ceilings

    @property
    def ready(self) -> bool:
        """True when this router can serve: not draining, and a target inside the cluster is up (or none is configured)."""
        targets = self.fleet.membership.targets
        if self.draining or not targets:
            return False
        only_cloud = not self.config.models and all(target.kind == "cloud" for target in self.config.targets)
        return only_cloud or any(target.kind is not Kind.CLOUD for target in targets)

    def take_reports(self, reports: Sequence[Report]) -> None:
        """The cluster's word for who is up, to everybody here who keeps books on targets."""
        self.fleet.update(reports)
        self.prefixes.update(reports)
        if self.policy.adapters:
            self.adapters.update(reports)
        if self.waiting.depth:
            self.waiting.walk(time.time())

    def view_for(self, facts: Facts, chains: PromptChains, now: float) -> View:
        """Everything a decision on this request may see: the books, and who holds how much of its prompt."""
        fleet, key, policy = self.fleet, facts.key, self.policy
        view = fleet.view(now, self.prefixes.held_tokens(chains, facts.prompt_tokens, fleet.places))
        if facts.model in policy.adapters:
            delays = self.adapters.delays(facts.model, view.membership.targets, view.loads)
            view = msgspec.structs.replace(view, adapter_s=delays)
        if key.spill and policy.spill_enabled and (key.spill_limit is not None or not math.isinf(policy.daily_budget_usd)):
            most = self.prices.most_outside(facts.prompt_tokens, facts.max_tokens or UNBOUNDED_ANSWER_TOKENS)
            view = msgspec.structs.replace(view, spend_left_usd=fleet.spending.left(now, key.spill_limit, most))
        return view

    def trust_of(self, target: Target, signals_age_s: float | None) -> Verdict:
        """How far a target's word about itself can be believed now."""
        return self.prefixes.trust(target, signals_age_s, time.monotonic())

    def chains_for(self, facts: Facts, body: dict[str, Any], models: Sequence[str]) -> PromptChains:
        """A request's prompt as hashes, under the salts that its engines will get: what another tenant has warmed is cold."""
        if facts.endpoint in NO_PREFILL:
            return PromptChains({})

        def salt_of(model: str) -> str:
            return self.salt_for(facts.key.tenant, facts.label, model, body)

        return self.prefixes.chains(facts.endpoint, body, models, salt_of if facts.endpoint in SALTED else None)

    def salt_for(self, tenant: str, label: Label, model: str, body: dict[str, Any]) -> str:
        """The `cache_salt` of a tenant's request under a label at a model's engines, with the client's own folded in.

        Without a client's own it is remembered, as `label_text` is: there are few tenants and labels and many requests.
        """
        if FIELD in body:
            return cache_salt(self.salt_key, tenant, self.label_text(self.policy.label_for(label, model)), body[FIELD])
        scope = (tenant, label, model)
        salt = self._salts.get(scope)
        if salt is None:
            if len(self._salts) > 4096:
                self._salts.clear()
            salt = cache_salt(self.salt_key, tenant, self.label_text(self.policy.label_for(label, model)))
            self._salts[scope] = salt
        return salt

    def own_pass(self, target: Target, method: str, path: str) -> str:
        """A pass for something the router itself wants of a target: its label admits that target and nothing more."""
        evidence = target.evidence
        label_text = self.label_text(Label(evidence.process, evidence.store, evidence.duties))
        expires = time.time() + PASS_LIFETIME_S
        permission = Pass(f"own-{secrets.token_hex(6)}", target.incarnation, self.policy.epoch, label_text, expires, ROUTER)
        return issue_pass(self.target_key(target.incarnation), permission, method, path)

    def reserve(self, limits: tuple[Limit, ...], facts: Facts) -> Reservation:
        """Take what a request may use up from these limits of its key, all or none.

        Raises:
            LimitReached: there is not enough left.
        """
        if not limits:
            return NOTHING
        cost = self.prices.most(facts.prompt_tokens, facts.max_tokens or UNBOUNDED_ANSWER_TOKENS)
        return self.limits.reserve(limits, facts.prompt_tokens, facts.max_tokens, time.time(), cost)

    def settle(self, reserved: Reservation, receipt: Receipt) -> None:
        """Replace what a request took by what it used, as its receipt has it."""
        if reserved.taken:
            self.limits.settle(reserved, used_tokens(receipt), self.prices.cost(receipt))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that has to wait, and keep hold of it until it is done. It must not raise."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def target_key(self, incarnation: str) -> bytes:
        """The pass key of one target incarnation (cached: one HMAC per incarnation, not per request)."""
        key = self._keys.get(incarnation)
        if key is None:
            if len(self._keys) > 4096:
                self._keys.clear()
            key = self._keys[incarnation] = derive_target_key(self._secret, incarnation)
        return key

    def label_text(self, label: Label) -> str:
        """The label in names, as passes and receipts carry it (cached: there are few labels and many requests)."""
        text = self._label_texts.get(label)
        if text is None:
            if len(self._label_texts) > 4096:
                self._label_texts.clear()
            text = self._label_texts[label] = self.policy.label_text(label)
        return text

    def credential(self, target_secret: str) -> bytes | None:
        """The bearer token of a server that already runs, if it has one."""
        token = self._credentials.get(target_secret)
        return None if token is None else token.encode("latin-1")
