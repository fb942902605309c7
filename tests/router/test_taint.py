"""Follow-ups inherit the label of their conversation, across processes and restarts, and losing state closes."""

from __future__ import annotations

import pytest

from router.placement.targets import Endpoint
from router.residency.conversation import NO_CONVERSATION, lineage_key, read_conversation
from router.residency.lineage import CLEAN, NOTHING, LineageBook, meet_texts
from router.residency.lineage_store import LineageStore
from router.residency.resolve import resolve_label
from tests.router.builders import NOW, SPILL_KEY, digest, grant_of, make_policy

KEY = lineage_key(b"s" * 32)
LONG = "The patient, born in the spring of that year, was seen on the ward twice."
ASKING = {"tags": {"phi": {"process": ["eu"], "require": ["baa"], "requires_lineage": True}}}


def say(*texts, role="user"):
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def read(messages, tenant="default", endpoint=Endpoint.CHAT):
    field = {Endpoint.RESPONSES: "input", Endpoint.COMPLETIONS: "prompt"}.get(endpoint, "messages")
    return read_conversation(KEY, tenant, endpoint, {field: messages})


def label_of(policy, *tags):
    return resolve_label(grant_of(policy, SPILL_KEY), tags, policy)


def book_after(policy, messages, *tags, store=None, endpoint=Endpoint.CHAT):
    book = LineageBook(1000, store)
    book.record(read(messages, endpoint=endpoint), "default", label_of(policy, *tags), policy, NOW)
    return book


def test_token_ids_are_followed_one_by_one_and_a_million_of_them_are_cheap(monkeypatch):
    tokens = list(range(3000))
    found = read_conversation(KEY, "t", Endpoint.COMPLETIONS, {"prompt": tokens})
    assert found == read_conversation(KEY, "t", Endpoint.RESPONSES, {"input": tokens}), "as any messages are"
    assert read_conversation(KEY, "t", Endpoint.COMPLETIONS, {"prompt": tokens[:40]}).prefixes == found.prefixes[:40]
    monkeypatch.setattr("router.residency.conversation._MOST_TOKENS", 1000)
    for more in (1000, 1001, 3000):
        cut = read_conversation(KEY, "t", Endpoint.COMPLETIONS, {"prompt": tokens[:more]})
        assert cut.prefixes == found.prefixes[:1000], "who appends to it is found by its last"


def test_a_follow_up_inherits_and_nobody_else_does():
    policy = make_policy()
    book = book_after(policy, say("hello"), "phi")
    found = book.inherited(read(say("hello", "hi", "more")), policy)
    assert (found.label, found.source) == (policy.tags["phi"], "conversation")
    assert book.inherited(read(say("hello", "hi", "more", "yes", "again")), policy).label == policy.tags["phi"]
    assert book.inherited(read(say("hello")), policy) is NOTHING
    assert book.inherited(read(say("good day", "hi", "more")), policy) is NOTHING
    assert book.inherited(read(say("hello", "hi", "more"), tenant="other"), policy) is NOTHING
    other_key = read_conversation(lineage_key(b"t" * 32), "default", Endpoint.CHAT, {"messages": say("hello", "hi", "more")})
    assert book.inherited(other_key, policy) is NOTHING


def test_all_that_is_known_takes_the_meet():
    policy = make_policy()
    book = book_after(policy, say("hello"), "local")
    book.record(read(say("hello", "hi", "more")), "default", label_of(policy, "phi"), policy, NOW)
    book.record(read(say("hello", "hi", "more", "yes", "on")), "default", label_of(policy, "eu"), policy, NOW)
    assert book.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["local"]
    assert book.inherited(read(say("hello", "hi", "more", "yes", "on", "x", "y")), policy).label == policy.tags["phi"]
    book.record(read(say("hello")), "default", label_of(policy, "us"), policy, NOW)
    assert book.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["us"]


def test_a_system_prompt_and_the_shape_of_messages_make_no_difference():
    policy = make_policy()
    book = book_after(policy, [{"role": "system", "content": "It is 10:01."}, *say("hello")], "phi")
    parts = [{"role": "user", "content": [{"type": "text", "text": " hello\n"}]}]
    later = [{"role": "developer", "content": "It is 10:02."}, *parts, *say("", "hi")[1:], *say("more")]
    assert book.inherited(read(later), policy).label == policy.tags["phi"]
    assert book.inherited(read(later, endpoint=Endpoint.MESSAGES), policy).label == policy.tags["phi"]
    assert book.inherited(read(later, endpoint=Endpoint.RESPONSES), policy).label == policy.tags["phi"]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    other = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:y"}}]}]
    book = book_after(policy, image, "phi")
    assert book.inherited(read([*image, *say("", "hi", "x")[1:]]), policy).label == policy.tags["phi"]
    assert book.inherited(read([*other, *say("", "hi", "x")[1:]]), policy) is NOTHING


def test_a_long_message_is_recognised_when_the_beginning_was_trimmed_away():
    policy = make_policy()
    book = book_after(policy, say("hello", "hi", LONG), "phi")
    assert book.inherited(read(say(LONG, "yes", "and then?")), policy).label == policy.tags["phi"]
    assert book.inherited(read(say("a new beginning", "ok", LONG)), policy) is NOTHING
    short = book_after(policy, say("hello", "hi", "short"), "phi")
    assert short.inherited(read(say("short", "yes", "and then?")), policy) is NOTHING


def test_responses_and_completions_have_conversations_other_endpoints_none():
    policy = make_policy()
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    book = book_after(policy, "hello", "phi", endpoint=Endpoint.RESPONSES)
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    assert book.inherited(read([*items, answer, *say("more")], endpoint=Endpoint.RESPONSES), policy).label == policy.tags["phi"]
    assert read("once", endpoint=Endpoint.COMPLETIONS).prefixes
    for parsed in ({"input": "x"}, {}, {"messages": None}):
        assert read_conversation(KEY, "t", Endpoint.EMBEDDINGS, parsed) is NO_CONVERSATION
        assert read_conversation(KEY, "t", Endpoint.CHAT, parsed).prefixes == ()


def test_odd_messages_are_hashed_not_refused():
    odd = [
        1,
        None,
        "x",
        {"content": 3},
        {"role": 5, "content": {"a": 1}},
        {"role": "user"},
        {"tool_calls": [{"id": "1"}], "role": "assistant"},
    ]
    found = read(odd)
    assert len(found.prefixes) == len(odd) - 1 and found.is_continued


def test_nothing_is_kept_of_what_narrows_nothing():
    policy = make_policy()
    book = book_after(policy, say("hello"), "any")
    assert len(book) == 0 and not book.needs(policy, "default", label_of(policy))
    assert book.needs(policy, "default", label_of(policy, "phi")) and book.needs(policy, "nobody's tenant", label_of(policy))
    assert book_after(policy, say("hello"), "phi").needs(policy, "default", label_of(policy))
    assert book.inherited(NO_CONVERSATION, policy) is NOTHING
    book.record(NO_CONVERSATION, "default", label_of(policy, "phi"), policy, NOW)
    assert len(book) == 0


def test_every_prefix_before_the_last_message_is_history():
    policy = make_policy()
    book = book_after(policy, say("hello", "hi"), "phi")  # a request that ends with a begun answer
    assert book.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    assert book.inherited(read(say("hello", "hi")), policy) is NOTHING


def test_a_history_that_begins_with_an_answer_has_no_known_past_even_when_it_comes_twice():
    policy = make_policy(residency=ASKING)
    begins_with_answer = [{"role": "assistant", "content": "How can I help?"}, {"role": "user", "content": "go on"}]
    book = book_after(policy, begins_with_answer, "any")
    found = book.inherited(read(begins_with_answer), policy)
    assert (found.label, found.source) == (policy.lineage_label, "unknown conversation")


def test_who_said_something_is_read_from_role_or_kind():
    assert not read("hello", endpoint=Endpoint.COMPLETIONS).is_continued
    assert not read(["hello", "again"], endpoint=Endpoint.RESPONSES).is_continued
    for kind, is_answer in {"function_call_output": False, "input_text": False, "reasoning": True, "function_call": True}.items():
        found = read([{"type": kind, "output": "x"}, {"role": "user", "content": "y"}], endpoint=Endpoint.RESPONSES)
        assert found.is_continued == is_answer


def test_a_message_counts_as_long_from_48_bytes_on():
    assert read(say("x" * 48)).last and not read(say("x" * 47)).last


def test_stored_keys_that_reach_further_than_the_configured_ones_count_as_well():
    policy = make_policy(keys=[{"id": "plain", "sha256": digest("plain"), "residency": "eu"}])
    book = LineageBook(1000)
    narrow, wide = policy.tags["eu"], policy.tags["local"]
    assert not book.needs(policy, "default", narrow) and book.needs(policy, "only stored", narrow)
    book.stored_widest = {"default": wide, "only stored": narrow}.get
    assert book.needs(policy, "default", narrow) and not book.needs(policy, "only stored", narrow)
    book.record(read(say("hello")), "default", narrow, policy, NOW)
    assert book.inherited(read(say("hello", "hi", "more")), policy).label == narrow
    keys = [{"id": "plain", "sha256": digest("plain"), "residency": "eu"}, {"id": "all", "sha256": digest("x"), "tenant": "t"}]
    claims = {"issuer": "i", "audience": "a", "jwks_file": "x", "key": "all", "tenant_claim": "team"}
    assert not LineageBook(10).needs(make_policy(keys=keys), "default", narrow)
    assert LineageBook(10).needs(make_policy(keys=keys, jwt=claims), "default", narrow), "a token may name this tenant"


def test_an_unknown_past_is_held_to_the_tags_that_require_lineage():
    policy = make_policy(residency=ASKING)
    book = book_after(policy, say("hello"), "any")
    assert len(book) == 1 and set(book._known.values()) == {CLEAN}
    assert book.inherited(read(say("hello", "hi", "more")), policy) is NOTHING
    assert book.inherited(read(say("hello")), policy) is NOTHING
    assert book.inherited(read(say("two", "of")[:1] + say("users")), policy) is NOTHING
    for unknown in (say("other", "hi", "more"), say("hello", "hi", "more", "yes", "and"), say("", "an answer", "x")[1:]):
        found = book.inherited(read(unknown), policy)
        assert (found.label, found.source) == (policy.tags["phi"], "unknown conversation")
    assert LineageBook(1000).inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    assert book.needs(policy, "default", label_of(policy))


def test_the_same_words_again_are_held_to_a_tag_that_requires_lineage_only():
    policy = make_policy(residency=ASKING)
    book = book_after(policy, say("hello"), "phi")
    assert book.inherited(read(say("hello")), policy).label == policy.tags["phi"]
    book = book_after(policy, say("hello"), "us")
    assert book.inherited(read(say("hello")), policy) is NOTHING
    both = book_after(policy, say("hello", "hi", LONG), "phi")
    both.record(read(say("x")), "default", label_of(policy), policy, NOW)
    assert both.inherited(read(say("x", "y", LONG)), policy).label == policy.tags["phi"]
    mixed = book_after(policy, say("x"), "eu")
    mixed.record(read(say("y", "z", LONG)), "default", label_of(policy, "phi"), policy, NOW)
    assert mixed.inherited(read(say("q", "z", LONG)), policy).label == policy.tags["phi"]


def test_an_unknown_past_and_a_known_label_take_the_meet():
    policy = make_policy(residency=ASKING)
    book = book_after(policy, say("hello", "hi", LONG), "us")
    assert book.inherited(read(say(LONG, "yes", "x", "y", "z")), policy).label == policy.tags["us"].meet(policy.tags["phi"])


def test_memory_is_bounded_and_the_least_used_goes_first():
    policy = make_policy()
    book = LineageBook(3)
    for text in ("a", "b", "c"):
        book.record(read(say(text)), "default", label_of(policy, "phi"), policy, NOW)
    assert book.inherited(read(say("a", "x", "y")), policy).label
    book.record(read(say("d")), "default", label_of(policy, "phi"), policy, NOW)
    assert len(book) == 3
    assert book.inherited(read(say("b", "x", "y")), policy) is NOTHING
    assert book.inherited(read(say("a", "x", "y")), policy).label


def test_what_one_router_knows_another_learns():
    policy = make_policy()
    book = book_after(policy, say("hello"), "phi")
    other = LineageBook(1000)
    other.learn(list(book.outbox))
    assert other.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    other.learn([(digest, CLEAN) for digest, _ in book.outbox])
    assert other.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    assert len(other.outbox) == 0
    before = len(book.outbox)
    book.record(read(say("hello")), "default", label_of(policy, "phi"), policy, NOW)
    assert len(book.outbox) == before


def test_meets_of_texts():
    assert meet_texts(CLEAN, "eu/eu/baa") == meet_texts("eu/eu/baa", CLEAN) == "eu/eu/baa"
    assert meet_texts("eu+us/eu+us/a", "us+cn/us/b") == "us/us/a+b"
    assert meet_texts("eu/eu/", "us/us/") == "//"


def test_the_store_survives_a_restart_and_is_shared(tmp_path):
    policy = make_policy()
    path = tmp_path / "deep" / "lineage.sqlite"
    store = LineageStore(path, 3600, NOW)
    other = LineageBook(1000, LineageStore(path, 3600, NOW))
    book_after(policy, say("hello"), "phi", store=store)
    assert path.stat().st_mode & 0o077 == 0
    assert other.needs(policy, "default", label_of(policy))
    assert other.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    assert len(other) == 1
    store.put({read(say("hello")).prefixes[0]: policy.label_text(label_of(policy, "us"))}, NOW)
    assert other.inherited(read(say("hello", "hi", "more")), policy).label.process == 0
    store.close()
    late = LineageStore(path, 3600, NOW + 3601)
    assert late.get([read(say("hello")).prefixes[0]]) == {}
    assert late.get([bytes([i % 256, i // 256]) for i in range(1200)]) == {}


def test_a_clock_that_is_set_ahead_makes_no_conversation_old(tmp_path):
    policy, store = make_policy(), LineageStore(tmp_path / "lineage.sqlite", 3600, NOW)
    book = book_after(policy, say("hello"), "phi", store=store)
    year = 365 * 86400
    book.clock_set(-60.0)
    book.clock_set(year)
    store.close()
    hashes = [read(say("hello")).prefixes[0]]
    assert LineageStore(tmp_path / "lineage.sqlite", 3600, NOW + year + 3599).get(hashes)
    assert not LineageStore(tmp_path / "lineage.sqlite", 3600, NOW + year + 3601).get(hashes)


def test_no_word_of_a_client_is_in_the_store(tmp_path):
    policy = make_policy()
    path = tmp_path / "lineage.sqlite"
    store = LineageStore(path, 3600, NOW)
    book_after(policy, say("hello CANARY-7731", "hi", LONG + " CANARY-7731"), "phi", store=store)
    store.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"eu" in content and b"CANARY" not in content and b"patient" not in content


def test_a_store_that_fails_says_so_once_and_closes_for_labels_that_ask(tmp_path, caplog):
    store = LineageStore(tmp_path / "lineage.sqlite", 3600, NOW)
    store._db.execute("DROP TABLE lineage")
    policy = make_policy(residency=ASKING)
    book = LineageBook(1000, store)
    assert book.inherited(read(say("hello", "hi", "more")), policy).label == policy.tags["phi"]
    book.record(read(say("x")), "default", label_of(policy), policy, NOW)
    assert store.failure == "OperationalError"
    assert len([record for record in caplog.records if "store fails" in record.message]) == 1


def test_a_file_that_is_no_store_is_refused(tmp_path):
    path = tmp_path / "lineage.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match=r"lineage\.sqlite"):
        LineageStore(path, 3600, NOW)
