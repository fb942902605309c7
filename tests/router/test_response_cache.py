"""The response cache's parts: what is one question, what is a whole answer, the gate, and the bounds."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from router.config import ConfigError
from router.placement.targets import Endpoint
from router.residency.cache_gate import Provenance
from router.residency.label import Label
from router.response_cache.answer import Answer, whole_answer
from router.response_cache.ask import Question, Wishes, canonical, forbids_keeping, read_question, read_wishes
from router.response_cache.book import ENTRY_BYTES, EntryKey, ResponseCache, open_cache
from router.response_cache.rule import CacheRule, place_of_cache
from tests.router.builders import KEY, SPILL_KEY, digest, grant_of, make_config, make_policy, make_target
from tests.router.simulated_engine import JSON_ANSWER, USAGE_EVENT, event

RULE = CacheRule(False, False, 60.0)
SECRET = b"k" * 32
CACHE = {"zones": ["eu"]}
WITH_CACHE = [
    {"id": "plain", "sha256": digest(KEY), "cache": True},
    {"id": "spiller", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True, "cache": {"share": "key"}},
]


# -- one question

_leaf = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
_json = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)
_bodies = st.dictionaries(
    st.sampled_from(["messages", "max_tokens", "tools", "x", "temperature", "seed"]) | st.text(max_size=6), _json, max_size=5
)


def shuffled(value: Any, randomness: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(inner, randomness)) for name, inner in value.items()]
        randomness.shuffle(items)
        return dict(items)
    return [shuffled(inner, randomness) for inner in value] if isinstance(value, list) else value


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [one for name, child in inner for one in paths_of(child, (*path, name))]


def changed_at(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed_at(copy[path[0]], path[1:], new)
    return copy


def said(value: Any) -> str:
    """A value with its types: 1, 1.0 and true are three things, and a list is no dict."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{name!r}:{said(inner)}" for name, inner in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(said, value)) + "]"
    return f"{type(value).__name__} {value!r}"


@given(_bodies, st.randoms(use_true_random=False), st.sampled_from([None, 1, 7]))
def test_order_of_keys_and_white_space_make_no_difference(body, randomness, indent):
    again = json.loads(json.dumps(shuffled(body, randomness), indent=indent, ensure_ascii=randomness.random() < 0.5))
    assert canonical(body, counted=True) == canonical(again, counted=True) is not None


@given(_bodies, st.data())
def test_any_change_anywhere_makes_another_question(body, data):
    body = {name: value for name, value in body.items() if name not in ("model", "stream", "stream_options")}
    paths = paths_of(body)
    if paths and data.draw(st.booleans()):
        other = changed_at(body, data.draw(st.sampled_from(paths)), data.draw(_json))
    elif body and data.draw(st.booleans()):
        gone = data.draw(st.sampled_from(sorted(body)))
        other = {name: value for name, value in body.items() if name != gone}
    else:
        other = {
            **body,
            data.draw(st.text(max_size=6).filter(lambda name: name not in ("model", "stream")), "name"): data.draw(_json),
        }
    same = said(body) == said(other)
    assert (canonical(body, counted=False) == canonical(other, counted=False)) is same


@given(_bodies, _bodies)
def test_two_bodies_are_one_question_only_if_they_are_equal(one, other):
    for name in ("model", "stream"):
        one.pop(name, None)
        other.pop(name, None)
    assert (canonical(one, counted=False) == canonical(other, counted=False)) is (said(one) == said(other))


def test_the_usage_wish_is_left_out_of_counted_streams_only_and_only_where_it_is_one():
    plain, wish = {"x": 1}, {"x": 1, "stream_options": {"include_usage": True}}
    assert canonical(plain, counted=True) == canonical(wish, counted=True) != canonical(wish, counted=False)
    more = {"x": 1, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    without = {"x": 1, "stream_options": {"continuous_usage_stats": True}}
    assert canonical(more, counted=True) == canonical(without, counted=True) != canonical(plain, counted=True)
    for odd in ("yes", 1, {"include_usage": "yes"}, {"include_usage": 1}):
        assert canonical({"x": 1, "stream_options": odd}, counted=True) != canonical(plain, counted=True)


def question(path: str, rule: CacheRule = RULE, **body: Any) -> Question | None:
    return read_question(SECRET, path, body, rule)


def test_only_a_counted_streams_wish_for_usage_is_no_part_of_the_question():
    wish = {"temperature": 0, "stream_options": {"include_usage": True}}
    for path, streamed, same in (
        (Endpoint.CHAT, True, True),
        (Endpoint.COMPLETIONS, True, True),
        (Endpoint.MESSAGES, True, False),
        (Endpoint.CHAT, False, False),
    ):
        one, other = question(path, **wish, stream=streamed), question(path, temperature=0, stream=streamed)
        assert one is not None and other is not None and (one == other) is same


def test_what_points_elsewhere_is_no_question():
    part = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    assert question(Endpoint.CHAT, temperature=0, messages=[{"role": "user", "content": [part]}]) is None
    part["image_url"] = {"url": "data:image/png;base64,AA=="}
    assert question(Endpoint.CHAT, temperature=0, messages=[{"role": "user", "content": [part]}]) is not None


def test_endpoint_and_stream_are_part_of_the_question_and_the_digest_is_keyed():
    one = question(Endpoint.CHAT, temperature=0)
    assert one is not None and one != question(Endpoint.COMPLETIONS, temperature=0)
    assert one != question(Endpoint.CHAT, temperature=0, stream=True) != question(Endpoint.CHAT, temperature=0)
    other = read_question(b"o" * 32, Endpoint.CHAT, {"temperature": 0}, RULE)
    assert other is not None and other.digest != one.digest


@pytest.mark.parametrize(
    ("path", "body", "kept", "sampled"),
    [
        (Endpoint.CHAT, {}, False, True),
        (Endpoint.CHAT, {"temperature": 0}, True, True),
        (Endpoint.MESSAGES, {"temperature": 0.0}, True, True),
        (Endpoint.COMPLETIONS, {"seed": 0}, True, True),
        (Endpoint.CHAT, {"seed": "0"}, False, True),
        (Endpoint.CHAT, {"temperature": "0"}, False, True),
        (Endpoint.CHAT, {"temperature": 1e-9}, False, True),
        (Endpoint.EMBEDDINGS, {"input": "x"}, True, True),
        (Endpoint.RERANK, {}, True, True),
        (Endpoint.SCORE, {}, True, True),
        (Endpoint.RESPONSES, {"temperature": 0}, False, False),
        (Endpoint.TRANSCRIPTIONS, {"temperature": 0}, False, False),
        (Endpoint.TOKENIZE, {}, False, False),
        (Endpoint.CHAT, {"temperature": 0, "kv_transfer_params": {}}, False, False),
        (Endpoint.CHAT, {"temperature": 0, "x": float("inf")}, False, False),
    ],
)
def test_which_requests_are_for_it(path, body, kept, sampled):
    assert (question(path, **body) is not None) is kept
    assert (question(path, replace(RULE, sampled=True), **body) is not None) is sampled


def test_what_clients_and_targets_say_about_caches():
    def wishes(*values: bytes) -> Wishes:
        return read_wishes([(b"accept", b"no-store"), *((b"cache-control", value) for value in values)])

    assert wishes() == Wishes() and wishes(b"", b"x=1") == Wishes()
    assert wishes(b"No-Store") == Wishes(read=False, keep=False)
    assert not wishes(b"max-age=3, NO-STORE").keep and not wishes(b"max-age=3, NO-STORE").read
    assert wishes(b"no-cache") == Wishes(read=False) and wishes(b'max-age="9"', b"max-age=5").max_age_s == 5
    assert wishes(b"max-age").max_age_s == wishes(b"max-age=-1").max_age_s == 0
    assert forbids_keeping([(b"cache-control", b"public, No-Store")]) and forbids_keeping([(b"cache-control", b'private="x"')])
    assert not forbids_keeping([(b"cache-control", b"no-cache, max-age=1"), (b"x", b"private")])


# -- a whole answer

DONE = b"data: [DONE]\n\n"
EVENTS = event(0) + event(1)
USAGE = USAGE_EVENT[6:].strip()
MESSAGE = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
SSE = b"text/event-stream; charset=utf-8"


@pytest.mark.parametrize("end", [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
@pytest.mark.parametrize("body", [EVENTS, EVENTS + USAGE_EVENT, b": a comment\n\n" + EVENTS])
def test_a_stream_is_kept_without_its_usage_event_and_given_with_it_where_it_is_asked_for(body, end):
    found = whole_answer(Endpoint.CHAT, SSE, body + end, USAGE, streamed=True)
    assert found is not None
    plain = body.replace(USAGE_EVENT, b"")
    assert b"".join(found.parts(keeps_usage=False)) == plain + end
    assert b"".join(found.parts(keeps_usage=True)) == plain + USAGE_EVENT + end
    without = whole_answer(Endpoint.COMPLETIONS, SSE, plain + end, b"", streamed=True)
    assert without is not None and b"".join(without.parts(keeps_usage=True)) == plain + end


@pytest.mark.parametrize(
    ("path", "kind", "body", "streamed"),
    [
        (Endpoint.CHAT, SSE, EVENTS, True),
        (Endpoint.CHAT, SSE, EVENTS + b"data: [DONE]", True),
        (Endpoint.CHAT, SSE, EVENTS + DONE + event(2), True),
        (Endpoint.CHAT, SSE, EVENTS + DONE + b"data: {", True),
        (Endpoint.CHAT, SSE, EVENTS + b'data: {"error":{"message":"no"}}\n\n' + DONE, True),
        (Endpoint.CHAT, SSE, EVENTS + b"data: not json\n\n" + DONE, True),
        (Endpoint.CHAT, SSE, b'data: {"choices":[{"finish_reason":"abort"}]}\n\n' + DONE, True),
        (Endpoint.CHAT, b"application/json", JSON_ANSWER, True),
        (Endpoint.CHAT, SSE, EVENTS + DONE, False),
        (Endpoint.CHAT, b"application/json", JSON_ANSWER[:-1], False),
        (Endpoint.CHAT, b"application/json", b"", False),
        (Endpoint.CHAT, b"", JSON_ANSWER, False),
        (Endpoint.CHAT, b"application/json", b'{"choices":[1]}', False),
        (Endpoint.CHAT, b"application/json", b"[" * 5000, False),
        (Endpoint.MESSAGES, SSE, MESSAGE, True),
        (Endpoint.MESSAGES, SSE, MESSAGE + DONE, True),
        (Endpoint.MESSAGES, SSE, STOP + MESSAGE, True),
        (Endpoint.MESSAGES, SSE, b"event: error\n" + b'data: {"type":"error"}\n\n' + STOP, True),
        (Endpoint.MESSAGES, SSE, b"", True),
    ],
)
def test_what_is_not_whole_or_no_success_is_no_answer(path, kind, body, streamed):
    assert whole_answer(path, kind, body, b"", streamed=streamed) is None


@pytest.mark.parametrize("body", [MESSAGE + STOP, MESSAGE + STOP + DONE])
def test_a_stream_of_messages_ends_with_its_stop(body):
    found = whole_answer(Endpoint.MESSAGES, SSE, body, b'{"usage":{}}', streamed=True)
    assert found is not None and b"".join(found.parts(keeps_usage=True)) == body


@given(st.integers(0, len(EVENTS + USAGE_EVENT + DONE) - 1))
def test_no_beginning_of_a_stream_is_a_whole_answer(length):
    assert whole_answer(Endpoint.CHAT, SSE, (EVENTS + USAGE_EVENT + DONE)[:length], USAGE, streamed=True) is None


# -- scopes, in the book and through the gate

_scopes = st.tuples(
    st.sampled_from(["e1", "e2"]),
    st.sampled_from(["t", "u"]),
    st.sampled_from(["", "k/k", "k/l"]),
    st.builds(Label, st.sampled_from([2, 6]), st.sampled_from([2, 6]), st.sampled_from([0, 1])),
    st.sampled_from(["m", "n"]),
)
_questions = st.builds(
    Question, st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS]), st.booleans(), st.sampled_from([b"1" * 32, b"2" * 32])
)


@given(st.lists(st.tuples(_scopes, _questions), max_size=12), _scopes, _questions)
def test_nothing_is_found_but_in_the_same_scope_for_the_same_question(kept, scope, asked):
    cache, policy = ResponseCache(2**20, 100, 2**18), make_policy()
    target = make_target(policy, "t", "eu")
    for place, (of, what) in enumerate(kept):
        origin = Provenance(of[0], of[1], of[2], of[3], of[4], target)
        assert cache.keep(EntryKey(*of, what), Answer(b"x", b"%d" % place), origin, f"r{place}", 60)
    found = cache.find(EntryKey(*scope, asked), 60)
    same = [place for place, entry in enumerate(kept) if entry == (scope, asked)]
    assert (found is not None) is bool(same)
    if found is not None:
        assert found[0].answer.body == b"%d" % same[-1] and found[0].request_id == f"r{same[-1]}"


# -- the bounds

MAX_BYTES, MAX_ENTRIES, MAX_ANSWER = 32 * 1024, 9, 6000


class Bounds(RuleBasedStateMachine):
    """The book beside a plain model of it: least recently used first, nothing after its time, never over the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.cache = ResponseCache(MAX_BYTES, MAX_ENTRIES, MAX_ANSWER, lambda: self.now)
        self.origin = Provenance("e", "t", "", Label(2, 2), "m", make_target(make_policy(), "t", "eu"))
        self.model: OrderedDict[int, tuple[float, float, int]] = OrderedDict()
        self.copies: list[tuple[Any, int]] = []

    def key(self, number: int) -> EntryKey:
        return EntryKey("e", "t", "", Label(2, 2), "m", Question(Endpoint.CHAT, False, b"%d" % number))

    @rule(number=st.integers(0, 14), size=st.integers(0, MAX_ANSWER + 400), ttl=st.sampled_from([0.5, 3.0, 50.0]))
    def keep(self, number, size, ttl):
        kept = self.cache.keep(self.key(number), Answer(b"", bytes(size)), self.origin, str(size), ttl)
        assert kept is (size <= MAX_ANSWER)
        if kept:
            self.model = OrderedDict((k, v) for k, v in self.model.items() if v[1] > self.now and k != number)
            room = MAX_BYTES - MAX_BYTES // 4
            while (
                len(self.model) >= MAX_ENTRIES or sum(v[2] + ENTRY_BYTES for v in self.model.values()) + size + ENTRY_BYTES > room
            ):
                self.model.popitem(last=False)
            self.model[number] = (self.now, self.now + ttl, size)

    @rule(number=st.integers(0, 14), max_age=st.sampled_from([0.0, 1.0, 1e9]))
    def find(self, number, max_age):
        found, known = self.cache.find(self.key(number), max_age), self.model.get(number)
        if known is not None and known[1] <= self.now:
            del self.model[number]
            known = None
        if known is None or self.now - known[0] >= max_age:
            assert found is None
        else:
            assert found is not None and (found[0].request_id, found[1]) == (str(known[2]), self.now - known[0])
            self.model.move_to_end(number)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.cache.sweep()
        self.model = OrderedDict((k, v) for k, v in self.model.items() if v[1] > self.now)
        assert len(self.cache) == len(self.model)

    @rule()
    def clear(self):
        self.cache.clear()
        self.model.clear()

    @rule(size=st.integers(0, 4000))
    def begin_copy(self, size):
        copy = self.cache.copy()
        copy.take(bytes(size))
        copy.take(bytes(10))
        self.copies.append((copy, size + 10))

    @precondition(lambda self: self.copies)
    @rule()
    def end_copy(self):
        copy, size = self.copies.pop()
        assert len(copy.close()) == (0 if copy.overrun else size)

    @invariant()
    def stays_within_its_bounds(self):
        entries, size = self.cache.measure()
        assert entries <= MAX_ENTRIES and 0 <= size <= MAX_BYTES
        copied = sum(size for copy, size in self.copies if not copy.overrun)
        # What has outlived its time goes at the next look at it; the model may know a little earlier.
        assert size - copied >= sum(v[2] + ENTRY_BYTES for v in self.model.values() if v[1] > self.now)
        assert len(self.cache._ends) <= 2 * MAX_ENTRIES + 66


TestBounds = Bounds.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_an_answer_longer_than_the_limit_is_dropped_while_it_comes():
    cache = ResponseCache(2**20, 10, 1000)
    copy = cache.copy()
    copy.take(bytes(900))
    assert cache.size == 900
    copy.take(bytes(101))
    assert copy.overrun and cache.size == 0
    copy.take(b"more")
    assert copy.close() == b"" and cache.size == 0


@pytest.mark.parametrize("size", [0, 300, 20_000])
def test_the_memory_that_python_takes_is_within_what_was_allowed(size):
    """Entries of any size, many more than fit, each with a scope of its own as the worst case has it."""
    limit = 4 * 2**20
    target = make_target(make_policy(), "t", "eu")
    cache = ResponseCache(limit, 1_000_000, 2**18)
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(2 * limit // (size + ENTRY_BYTES)):
            scope = (f"epoch-{i % 3}", f"tenant-{i}", f"owner-{i}", Label(i, i), f"model-{i}")
            answer = Answer(b"application/json" + b" " * (i % 2), bytes(size))
            cache.keep(
                EntryKey(*scope, Question(Endpoint.CHAT, False, i.to_bytes(32))),
                answer,
                Provenance(*scope, target),
                f"req-{i:024x}",
                60,
            )
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(cache) >= 0.7 * limit / (size + ENTRY_BYTES) and cache.size <= limit
    assert taken <= limit


# -- the configuration


def test_a_key_without_cache_has_no_rule_and_one_with_it_has_its_own():
    policy = make_policy(cache={**CACHE, "ttl_s": 100}, keys=[*WITH_CACHE, {"id": "x", "sha256": digest("x")}])
    assert grant_of(policy, "x").cache is None and grant_of(policy).cache == CacheRule(False, False, 100)
    assert grant_of(policy, SPILL_KEY).cache == CacheRule(True, False, 100)
    for ttl, meant in ((7, 7), (700, 100)):
        key = {"id": "k", "sha256": digest(KEY), "cache": {"ttl_s": ttl, "sampled": True}}
        assert grant_of(make_policy(cache={**CACHE, "ttl_s": 100}, keys=[key])).cache == CacheRule(False, True, meant)
    off = make_policy(cache=CACHE, keys=[{"id": "k", "sha256": digest(KEY), "cache": False}])
    assert grant_of(off).cache is None
    assert place_of_cache(make_config(), policy.vocabulary) is None
    place = place_of_cache(make_config(cache=CACHE), policy.vocabulary, ["nowhere declared"])
    assert place is not None and place.store & 1
    assert open_cache(make_config(cache={**CACHE, "max_mib": 1}).cache).measure() == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": WITH_CACHE}, r"keys\[0\]\.cache: there is no cache: say where"),
        ({"cache": {}}, r"cache\.zones"),
        ({"cache": {"zones": []}}, r"cache\.zones"),
        ({"cache": {"zones": ["ue"]}}, r"cache\.zones: unknown zone `ue`; did you mean"),
        ({"cache": {"zones": ["cloud"]}}, r"cache\.zones: `cloud` is external"),
        ({"cache": {**CACHE, "duties": ["bba"]}}, r"cache\.duties: unknown duty `bba`"),
        ({"cache": {**CACHE, "ttl_s": 0}}, r"cache\.ttl_s"),
        ({"cache": {**CACHE, "disk": "x"}}, r"cache\.disk"),
        ({"cache": {"zones": ["us"]}, "keys": [{**WITH_CACHE[0], "residency": "phi"}]}, r"keys\[0\]\.cache: this key's ceiling"),
        ({"cache": CACHE, "keys": [{**WITH_CACHE[0], "cache": {"share": "all"}}]}, r"keys\[0\]\.cache\.share"),
        ({"cache": CACHE, "keys": [{**WITH_CACHE[0], "cache": "yes"}]}, r"keys\[0\]\.cache"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_meant_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_policy(**changes)


def test_the_name_of_the_cache_is_no_targets():
    target = {"id": "cache", "kind": "server", "vouched": True, "url": "http://x", "zone": "eu", "models": {"tiny": "t"}}
    with pytest.raises(ConfigError, match="`cache` is the name"):
        make_config(cache=CACHE, targets=[target])
    assert make_config(targets=[target])
