"""`tidegate breakglass`: two people open, anybody closes, and everything is on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tidegate.cli import app
from typer.testing import CliRunner

from router.config import ConfigError
from router.policy_source import PolicySource
from router.residency.resolve import relaxations_at, resolve_label
from tests.router.builders import digest, grant_of

RUNNER = CliRunner()


def run(*arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["breakglass", *arguments])
    return result.exit_code, result.output.strip()


class Office:
    """An installation with three approvers, each with a key of their own."""

    def __init__(self, root: Path, config_file: Path) -> None:
        self.root = root
        self.approvers = {}
        for name in ("alice", "bob", "carol"):
            code, public = run("keygen", str(root / f"{name}.key"))
            assert code == 0
            self.approvers[name] = public
        document = yaml.safe_load(config_file.read_text())
        self.args = document["applications"][0]["args"]
        self.args["zones"] = {"local": {}, "far": {}}
        self.args["models"][0]["replicas"].append({"zone": "far", "gpus": 0})
        self.args["keys"] = [{"id": "clinic", "sha256": digest("tg_test-key"), "residency": "local-only"}]
        self.args["residency"] = {"tags": {"local-only": {"process": ["local"]}}}
        self.args["break_glass"] = {"file": "glass/open.jsonl", "approvers": self.approvers}
        config_file.write_text(yaml.safe_dump(document))

    def ask(self, **more: str) -> str:
        values = {"key": "clinic", "tag": "any", "reason": "far is all that is left", "hours": "2", **more}
        code, file = run("request", *(part for name, value in values.items() for part in (f"--{name}", value)))
        assert code == 0, file
        return Path(file).stem

    def sign(self, name: str, who: str, key: str | None = None) -> tuple[int, str]:
        return run("approve", name, "--as", who, "--private-key", str(self.root / f"{key or who}.key"))

    def rows(self) -> dict[str, dict[str, object]]:
        code, text = run("list")
        assert code == 0, text
        return {row["id"]: row for row in map(json.loads, text.splitlines())}

    def events(self, name: str) -> list[str]:
        found = RUNNER.invoke(app, ["audit", "search", "--id", name])
        return [json.loads(line)["event"] for line in found.output.splitlines()]


@pytest.fixture
def office(home, config_file) -> Office:
    return Office(home.root, config_file)


def test_two_people_open_it_and_routers_see_it_and_the_log_says_who(office):
    source = PolicySource(office.args, office.root)
    assert not source.load().policy.relaxations
    name = office.ask()
    assert office.rows()[name]["state"] == "asked" and not source.load().policy.relaxations
    assert office.sign(name, "alice") == (0, "signed: 1 of 2")
    assert office.sign(name, "alice") == (0, "signed: 1 of 2"), "the same person again is no second person"
    assert not source.load().policy.relaxations and source.changed() is False
    assert office.sign(name, "bob") == (0, "signed: 2 of 2; it is in force")
    assert source.changed()
    policy = source.load().policy
    [relaxation] = policy.relaxations
    grant, now = grant_of(policy), relaxation.begins + 1
    assert relaxation.approved_by == ("alice", "bob") and relaxations_at(grant, now) == (name,)
    assert resolve_label(grant, (), policy, now=now) == policy.tags["any"]
    row = office.rows()[name]
    assert row["state"] == "open" and row["approved_by"] == ["alice", "bob"] and row["reason"] == "far is all that is left"
    assert office.events(name) == ["glass.request", "glass.approve", "glass.approve", "glass.approve", "glass.open"]

    assert run("revoke", name, "--by", "carol") == (0, f"revoked: {name}")
    assert source.changed() and not source.load().policy.relaxations and not office.rows()
    assert office.events(name)[-1] == "glass.revoke" and RUNNER.invoke(app, ["audit", "verify"]).exit_code == 0
    code, text = run("revoke", name)
    assert code == 1 and "there is no relaxation" in text


def test_a_signature_with_somebody_elses_key_or_of_a_stranger_is_none(office):
    name = office.ask()
    for who, key in (("alice", "bob"), ("mallory", "alice")):
        code, text = office.sign(name, who, key)
        assert code == 1 and "is no approver with this key" in text
    (office.root / "alice.key").chmod(0o644)
    code, text = office.sign(name, "alice")
    assert code == 1 and "others can read this private key" in text
    assert office.rows()[name]["approved_by"] == []


@pytest.mark.parametrize(("field", "value"), [("tags", ["far"]), ("key", "other"), ("ends", "2027-01-01T00:00:00+00:00")])
def test_a_request_that_is_changed_after_a_signature_never_opens(office, field, value):
    name = office.ask()
    assert office.sign(name, "alice")[0] == 0
    file = office.root / "glass" / "open.jsonl.requests" / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    code, text = office.sign(name, "bob")
    assert code == 1 and ("is not valid for this relaxation" in text or "at most 8 hours" in text)
    assert not (office.root / "glass" / "open.jsonl").exists()


def test_a_request_travels_as_a_file_and_others_stay_as_they_were(office, tmp_path_factory):
    first, second = office.ask(), office.ask(reason="another")
    assert office.sign(first, "alice")[0] == office.sign(first, "carol")[0] == 0
    elsewhere = tmp_path_factory.mktemp("other") / "copy.json"
    elsewhere.write_bytes((office.root / "glass" / "open.jsonl.requests" / f"{second}.json").read_bytes())
    assert office.sign(str(elsewhere), "bob") == (0, "signed: 1 of 2")
    assert office.sign(str(elsewhere), "carol") == (0, "signed: 2 of 2; it is in force")
    assert [row["state"] for row in office.rows().values()] == ["open", "open"]
    assert office.sign(first, "bob")[0] == 1, "it is in force already"
    run("revoke", first)
    assert list(office.rows()) == [second]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"hours": "9"}, "at most 8 hours"),
        ({"hours": "0"}, "more than nothing"),
        *(({"hours": odd}, "more than nothing") for odd in ("nan", "inf", "1e300")),
        ({"begins": "9999-12-31T23:59:00Z"}, "too far ahead"),
        ({"tag": "nowhere"}, "unknown tag `nowhere`"),
        ({"reason": " "}, "the reason"),
        ({"begins": "2026-11-22T03:00:00"}, "needs its offset"),
        ({"begins": "soon"}, "is no time"),
    ],
)
def test_what_could_never_hold_is_refused_at_once(office, more, why):
    values = {"key": "clinic", "tag": "any", "reason": "r", "hours": "2", **more}
    code, text = run("request", *(part for name, value in values.items() for part in (f"--{name}", value)))
    assert code == 1 and why in text


def test_a_request_for_a_key_that_there_is_not_is_made_with_a_warning(office):
    wish = ("--tag", "any", "--reason", "r")
    assert "warning" not in run("request", "--key", "clinic", *wish)[1]
    code, text = run("request", "--key", "clinc", *wish)
    assert code == 0
    assert "there is no key `clinc` in the configuration or its store" in text
    assert RUNNER.invoke(app, ["keys", "create", "clinc", "--stored"]).exit_code == 0
    assert "warning" not in run("request", "--key", "clinc", *wish)[1]


@pytest.mark.parametrize("layer", ["policy_file", "user_config"])
def test_what_a_later_layer_of_the_policy_declares_can_be_named(office, config_file, layer):
    part = {
        "residency": {"tags": {"night": {"process": ["local", "far"]}}},
        "keys": [{"id": "ward", "sha256": digest("tg_ward")}],
    }
    document = yaml.safe_load(config_file.read_text())
    if layer == "policy_file":
        document["applications"][0]["args"]["policy_file"] = "policy.yaml"
        (office.root / "policy.yaml").write_text(f"{yaml.safe_dump(part)}...\n")
    else:
        document["applications"][0]["deployments"] = [{"name": "router", "user_config": part}]
    config_file.write_text(yaml.safe_dump(document))
    code, text = run("request", "--key", "ward", "--tag", "night", "--reason", "r")
    assert code == 0, text
    assert "warning" not in text
    stored = RUNNER.invoke(app, ["keys", "create", "other", "--stored", "--residency", "night"])
    assert stored.exit_code == 0, stored.output
    same = RUNNER.invoke(app, ["policy", "diff", str(config_file)])
    assert same.exit_code == 0, same.output


def test_without_a_block_in_the_configuration_and_with_a_damaged_file_it_says_so(home, config_file):
    code, text = run("list")
    assert code == 1 and "has no `break_glass`" in text
    office = Office(home.root, config_file)
    assert run("keygen", str(home.root / "alice.key"))[0] == 1
    (home.root / "glass").mkdir()
    (home.root / "glass" / "open.jsonl").write_text("{\n")
    code, text = run("list")
    assert code == 1 and "line 1" in text
    name = office.ask()
    assert office.sign(name, "alice")[0] == 0
    assert office.sign(name, "bob")[0] == 1, "a file that routers refuse is not written anew with one more line"


def test_a_wider_policy_is_compared_signed_for_by_two_and_then_taken(office, tmp_path):
    office.args["break_glass"]["policies"] = "glass/wider.jsonl"
    config_file = office.root / "serve_config.yaml"
    document = yaml.safe_load(config_file.read_text())
    document["applications"][0]["args"] = office.args
    config_file.write_text(yaml.safe_dump(document))
    source = PolicySource({**office.args, "policy_file": "policy.yaml"}, office.root)
    policy = office.root / "policy.yaml"
    policy.write_text("{}\n...\n")
    source.running = source.load()
    policy.write_text(yaml.safe_dump({"residency": {"tags": {"local-only": {"process": ["local", "far"]}}}}) + "...\n")

    compared = RUNNER.invoke(app, ["policy", "diff", str(policy)])
    assert compared.exit_code == 1 and "+ key clinic: engines in far" in compared.output.splitlines(), compared.output
    with pytest.raises(ConfigError, match="lets more through") as refused:
        source.load()
    words = str(refused.value).split()
    step = ["--before", words[words.index("--before") + 1], "--after", words[words.index("--after") + 1].rstrip("`")]

    def sign(who: str, reason: str = "far is built") -> tuple[int, str]:
        key = str(office.root / f"{who}.key")
        result = RUNNER.invoke(app, ["policy", "approve", *step, "--reason", reason, "--as", who, "--private-key", key])
        return result.exit_code, result.output.strip()

    assert sign("alice") == sign("alice") == (0, "signed: 1 of 2")
    assert "for another reason" in sign("bob", "whatever")[1]
    with pytest.raises(ConfigError):
        source.load()
    waiting = next((office.root / "glass").glob("wider.jsonl.requests/*.json"))
    long_ago = json.loads(waiting.read_text())
    waiting.write_text(json.dumps({**long_ago, "ends": "2026-01-01T00:00:00+00:00"}))
    assert sign("alice") == (0, "signed: 1 of 2"), "what was asked for so long ago that it has ended is asked for anew"
    assert sign("bob") == (0, "signed: 2 of 2; routers may take it")
    assert source.changed() and "key clinic: engines in far" in (source.load(), source.wider)[1]
    assert office.events(step[1]) == ["glass.approve"] * 4
    policy.write_text("{}\n...\n")
    assert RUNNER.invoke(app, ["policy", "diff", str(policy)]).exit_code == 0
    assert RUNNER.invoke(app, ["policy", "diff", str(office.root / "alice.key")]).exit_code == 2
    step = ["--before", "x", "--after", "y"]
    assert "both digests" in sign("alice")[1]
