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
    ],
)
def test_wrong_configurations_say_what_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_a_cloud_target_in_an_inner_zone_and_an_unvouched_server_are_refused():
    cloud = {"id": "c", "kind": "cloud", "url": "https://x", "zone": "eu", "models": {"tiny": "t"}}
    with pytest.raises(ConfigError, match="external: true"):
        make_config(targets=[cloud])
    server = {**cloud, "kind": "server"}
    with pytest.raises(ConfigError, match="vouched: true"):
        make_config(targets=[server])
    with pytest.raises(ConfigError, match="base URL"):
        make_config(targets=[{**server, "vouched": True, "url": "https://user:secret@x"}])


def test_an_engine_in_an_external_zone_is_refused():
    model = {"id": "m", "source": "x", "replicas": [{"zone": "cloud"}]}
    with pytest.raises(ConfigError, match="external; engines run inside"):
        make_config(models=[model])


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
