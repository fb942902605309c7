"""Every wrong configuration says which key is wrong and what would be right; a right one compiles to what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from router.compiled import compile_policy
from router.config import ConfigError, load_file, parse_config, parse_yaml
from tests.router.builders import KEY, digest, grant_of, make_config, make_policy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modells": []}, r"unknown key `modells`; did you mean `models`"),
        ({"slo": {"ttft": 3}}, r"unknown key `slo.ttft`; did you mean `ttft_ms`"),
        ({"keys": [{"id": "a", "sha": "x"}]}, r"unknown key `keys\[0\].sha`; did you mean `sha256`"),
        ({"zones": {}}, r"zones: "),
        ({"zones": {"bad name": {}}}, r"zones: "),
        ({"residency": {"default": "evrywhere"}}, r"residency.default: unknown tag"),
        ({"residency": {"tags": {"phi": {"process": ["eeu"]}}}}, r"residency.tags.phi: unknown zone `eeu`; did you mean `eu`"),
        ({"residency": {"tags": {"any": {"process": ["eu"]}}}}, r"residency.tags.any: this tag is built in"),
        ({"residency": {"tags": {"phi": {"process": ["eu"], "require": ["baaa"]}}}}, r"unknown duty `baaa`; did you mean `baa`"),
        ({"keys": [{"id": "a", "sha256": "abc"}]}, r"64 lower-case hex"),
        ({"keys": [{"id": "a"}]}, r"exactly one of `sha256` and `sha256_file`"),
        ({"keys": [{"id": "a", "sha256": digest("x"), "residency": "uk"}]}, r"keys\[0\].residency: unknown tag `uk`"),
        ({"keys": [{"id": "a", "sha256": digest("x"), "models": ["tinny"]}]}, r"unknown model `tinny`; did you mean `tiny`"),
        ({"models": [], "targets": []}, r"nothing to route to"),
        ({"complexity": {"tiers": ["tiny"]}}, r"is the name of a tier"),
        ({"listen": {"port": 70000}}, r"listen.port: "),
        ({"admin": {"host": ""}}, r"admin.host: an address or the name of a host"),
        ({"listen": {"host": "[::1]"}}, r"listen.host: `\[::1\]` is no IPv6 address: give ::1"),
        ({"listen": {"host": "a" * 300}}, r"listen.host: "),
        ({"listen": {"host": "127.0.0.1 "}}, r"listen.host: "),
        ({"policy_file": ""}, r"policy_file: "),
        ({"egress": {"url": "https://klinik-münchen.example"}}, r"egress.url: a host's name in a URL is ASCII"),
        ({"classify": {"countries": ["fr", "uk"]}}, r"classify.countries: no numbers of a country `uk` .* gb "),
        ({"classify": {"countries": ["DE"]}}, r"classify.countries: .* `DE` are known here, only of: .* de "),
        ({"keys": [{"id": "a", "sha256": digest("x"), "daily_usd": 1e308}]}, r"keys\[0\].daily_usd: "),
        ({"keys": [{"id": "a", "sha256": digest("x"), "daily_tokens": 10**18}]}, r"keys\[0\].daily_tokens: "),
        ({"complexity": {"cascade": {"hold_ms": float("inf")}}}, r"complexity.cascade.hold_ms: a number that is too large"),
        ({"max_body_bytes": 10**400}, r"max_body_bytes: a number that is too large"),
        ({"listen": {"host": "\ud800"}}, r"listen.host: this text has the character U\+D800"),
        ({"keys": [{"id": "a", "sha256": digest("x"), "cidr": ["\udfff"]}]}, r"keys\[0\].cidr\[0\]: .*U\+DFFF"),
        ({"policy_file": "a\0b"}, r"policy_file: .*U\+0000"),
        ({"zones": {"\ud800": {}}}, r"zones.'\\ud800': this key"),
        ({"\ud800": 1}, r"'\\ud800': this key"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_what_a_wrong_configuration_is_told_can_be_printed_anywhere():
    with pytest.raises(ConfigError) as refused:
        make_config(**{"policy_file": "\ud800", "\udfff": "\ud800", "duties": ["a\0"]})
    assert len(str(refused.value).encode("utf-8").splitlines()) == 4


def test_a_configuration_that_holds_itself_is_refused_and_ends():
    itself: dict[str, object] = {}
    itself["x"] = itself
    with pytest.raises(ConfigError, match=r"tenants\.x\.x"):
        make_config(tenants=itself)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "router-1.example"])
def test_every_kind_of_address_can_be_listened_at(host):
    assert make_config(admin={"host": host}).admin.host == host


def test_a_budget_for_spilling_wants_the_price_of_what_it_is_to_hold():
    cloud = {"id": "c", "kind": "cloud", "url": "https://c.invalid", "zone": "cloud", "models": {"tiny": "t"}}
    spiller = {"id": "s", "sha256": "0" * 64, "spill": True, "spill_daily_usd": 1.0}
    for budget in ({"spill": {"daily_budget_usd": 5}}, {"keys": [spiller]}):
        with pytest.raises(ConfigError, match=r"targets\[0\]\.price: without it `(spill|keys\[0\])\."):
            make_config(targets=[cloud], **budget)
        make_config(targets=[{**cloud, "price": {}}], **budget)
    make_config(targets=[cloud])


def test_a_cloud_target_in_an_inner_zone_and_an_unvouched_server_are_refused():
    cloud = {"id": "c", "kind": "cloud", "url": "https://x", "zone": "eu", "models": {"tiny": "t"}}
    with pytest.raises(ConfigError, match="external: true"):
        make_config(targets=[cloud])
    server = {**cloud, "kind": "server"}
    with pytest.raises(ConfigError, match="vouched: true"):
        make_config(targets=[server])
    with pytest.raises(ConfigError, match="base URL"):
        make_config(targets=[{**server, "vouched": True, "url": "https://user:secret@x"}])


def test_an_engine_or_server_in_an_external_zone_is_refused():
    model = {"id": "m", "source": "x", "replicas": [{"zone": "cloud"}]}
    with pytest.raises(ConfigError, match="external; engines run inside"):
        make_config(models=[model])
    server = {"id": "s", "kind": "server", "vouched": True, "url": "http://127.0.0.1:1", "zone": "cloud", "models": {"m": "m"}}
    with pytest.raises(ConfigError, match=r"targets\[0\]\.zone: `cloud` is external, and a server is inside.*`kind: cloud`"):
        make_config(targets=[server])
    make_config(targets=[{**server, "zone": "eu"}])


def test_the_default_label_denies_what_is_external():
    policy = make_policy()
    assert policy.vocabulary.zone_names(policy.default_label.process) == ("eu", "us")
    assert policy.vocabulary.zone_names(policy.tags["any"].process) == ("cloud", "eu", "us")
    assert grant_of(policy, KEY).ceiling == policy.default_label


def test_a_ceiling_of_several_tags_is_their_meet_and_an_empty_one_is_refused():
    policy = make_policy(keys=[{"id": "a", "sha256": digest("x"), "residency": ["phi", "local"]}])
    assert policy.place_of(grant_of(policy, "x").ceiling).to_text() == "eu/eu/baa"
    with pytest.raises(ConfigError, match="no zone satisfies all of eu, us"):
        make_policy(keys=[{"id": "a", "sha256": digest("x"), "residency": ["eu", "us"]}])


def test_the_same_key_twice_and_a_missing_key_file_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="the same key"):
        make_policy(keys=[{"id": "a", "sha256": digest("x")}, {"id": "b", "sha256": digest("x")}])
    config = make_config(keys=[{"id": "a", "sha256_file": "a.sha256"}])
    with pytest.raises(ConfigError, match="tidegate keys create a"):
        compile_policy(config, tmp_path)
    (tmp_path / "a.sha256").write_text("not hex\n")
    with pytest.raises(ConfigError, match="does not hold a SHA-256"):
        compile_policy(config, tmp_path)
    (tmp_path / "a.sha256").write_text(digest("x") + "\n")
    assert grant_of(compile_policy(config, tmp_path), "x").id == "a"


def test_the_epoch_changes_with_the_configuration_and_only_with_it():
    assert make_policy().epoch == make_policy().epoch
    assert make_policy().epoch != make_policy(slo={"ttft_ms": 1}).epoch


def test_files(tmp_path: Path):
    path = tmp_path / "serve.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        load_file(path)
    path.write_text("zones: {eu: {}}\nzones: {us: {}}\n")
    with pytest.raises(ConfigError, match="`zones` is given twice"):
        load_file(path)
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_file(path)
    path.write_text("applications: [{import_path: other.app}]\n")
    with pytest.raises(ConfigError, match=r"deployments\.app:build"):
        load_file(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_file(path)
    inner = "{zones: {eu: {}}, models: [{id: m, source: x, replicas: [{zone: eu}]}]}"
    path.write_text(f"proxy_location: Disabled\napplications: [{{import_path: 'deployments.app:build', args: {inner}}}]\n")
    assert load_file(path).models[0].id == "m"


def test_numbers_among_engine_arguments_become_text():
    model = {"id": "m", "source": "x", "args": ["--max-model-len", 8192], "replicas": [{"zone": "eu"}]}
    assert parse_config({"zones": {"eu": {}}, "models": [model]}).models[0].args == ["--max-model-len", "8192"]


def test_what_is_given_to_a_mapping_by_an_anchor_may_be_given_anew():
    read = parse_yaml("base: &base {zone: eu, slots: 4}\nown: {<<: *base, slots: 8}\n")
    assert read["own"] == {"zone": "eu", "slots": 8}
    with pytest.raises(yaml.YAMLError, match="`slots` is given twice"):
        parse_yaml("base: &base {zone: eu}\nown: {<<: *base, slots: 8, slots: 9}\n")


@pytest.mark.parametrize(
    "place",
    ["max_body_bytes", "complexity.share", "complexity.labels.keep_days", "cache.max_mib", "slo.ttft_ms", "admin.port"],
)
def test_yes_is_no_number(place):
    *blocks, key = place.split(".")
    found = inside = {}
    for block in blocks:
        inside = inside.setdefault(block, {})
    inside[key] = True
    with pytest.raises(ConfigError, match=f"{key}: use a number, not yes or no"):
        parse_config(found)


def test_a_retention_below_the_floor_of_a_profile_is_refused():
    for profile, floor in (("ai-act", 183), ("hipaa", 2192), ("pci-dss", 365), ("dora", 1827)):
        with pytest.raises(ConfigError, match=f"`{profile}` asks for at least {floor} days, not {floor - 1}"):
            make_config(audit={"retention": {"days": floor - 1, "profiles": [profile]}})
        make_config(audit={"retention": {"days": floor, "profiles": [profile]}})


def test_clients_and_the_admin_listener_cannot_have_one_port():
    for ports in ({"listen": {"port": 8001}}, {"admin": {"port": 8000}}, {"listen": {"port": 9}, "admin": {"port": 9}}):
        with pytest.raises(ConfigError, match=r"admin\.port: \d+ is `listen\.port`, too"):
            make_config(**ports)
    make_config(listen={"port": 8001}, admin={"port": 8000})


def test_a_value_of_the_wrong_shape_is_told_in_words_of_yaml():
    for wrong, said in (
        ({"zones": ["eu"]}, "zones: expected a mapping"),
        ({"secret": "x"}, "secret: expected a mapping"),
        ({"keys": {"a": 1}}, "keys: expected a list"),
        ({"cache": {}}, "cache.zones: this key is required"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_config(**wrong)
