"""What the README shows is what the files hold, and its example configurations are valid."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from router.compiled import compile_policy
from router.config import Jwt, parse_config
from router.config.schema import Allowance
from router.identity.tokens import TokenVerifier

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_opens_with_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.S)
    assert first is not None
    assert [line.split()[0] for line in first[1].splitlines()] == ["./scripts/quickstart", "./scripts/test"]


@pytest.mark.parametrize("name", ["one_node_8_gpus", "three_nodes_two_zones_cloud"])
def test_the_examples_it_shows_are_the_files_and_are_valid(name):
    shown = re.search(rf"deployments/examples/{name}\.yaml</code></summary>\n\n```yaml\n(.*?)\n```", README, re.S)
    assert shown is not None
    assert shown[1] == (ROOT / "deployments" / "examples" / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
    assert parse_config(yaml.safe_load(shown[1])["applications"][0]["args"])


def test_no_placeholder_is_left_and_every_named_file_exists():
    assert "{{" not in README
    for path in re.findall(r"`((?:router|cluster|deployments|scripts|tests)/[\w./-]+\.\w+)`", README):
        assert (ROOT / path).exists(), path


def test_every_error_code_and_status_is_named():
    paragraph = re.search(r"^Errors have OpenAI's envelope.*?\n\n", README, re.S | re.M)
    assert paragraph is not None
    named = {
        (status, code)
        for codes, statuses in re.findall(r"((?:`\w+`(?:,| and) )*`\w+`) (\d{3}(?:/\d{3})*)", paragraph[0])
        for code in re.findall(r"\w+_\w+|overloaded", codes)
        for status in statuses.split("/")
    }
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "router").rglob("*.py")]
    used = {pair for source in sources for pair in re.findall(r'ApiError\(\s*(\d{3}),\s*"(\w+)"', source)}
    assert used and used - named == set()


def test_every_metric_it_names_exists():
    made = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "router").rglob("*.py"))
    for name in set(re.findall(r"`(tidegate_\w*[a-z])`", README)):
        assert f'"{name.removesuffix("_total")}"' in made, name


def test_every_limit_is_named():
    assert [name for name in Allowance.model_fields if f"`{name}`" not in README] == []


def test_a_token_of_the_issuer_it_shows_bears_the_key_it_shows(tmp_path):
    shown = re.search(r"```yaml\n(keys:\n- \{id: staff.*?)```", README, re.S)
    assert shown is not None
    tags = {"patient": {"process": ["eu"], "store": ["eu"]}}
    models = [{"id": "m", "source": "x", "tier": "small", "replicas": [{"zone": "eu"}]}]
    args = {"zones": {"eu": {}}, "residency": {"tags": tags}, "models": models, **yaml.safe_load(shown[1])}
    signer = RSAKey.generate_key(2048, {"kid": "k"})
    (tmp_path / ".tidegate" / "keys").mkdir(parents=True)
    (tmp_path / ".tidegate" / "keys" / "staff.sha256").write_text("0" * 64)
    (tmp_path / ".tidegate" / "jwks.json").write_text(json.dumps(KeySet([signer]).as_dict(private=False)))
    config = parse_config(args)
    policy = compile_policy(config, tmp_path)
    assert isinstance(config.jwt, Jwt)
    now = time.time()
    claims = {"iss": config.jwt.issuer, "aud": "tidegate", "sub": "alice", "exp": int(now) + 60, "tidegate": {"priority": "low"}}
    token = jwt.encode({"alg": "RS256", "kid": "k"}, claims, signer).encode()
    grant = TokenVerifier(config.jwt, policy, tmp_path).find(token, now)
    (key,) = policy.keys.values()
    assert grant is not None and "alice" not in grant.id
    assert (grant.tenant, grant.ceiling, grant.limits) == (key.tenant, key.ceiling, key.limits)
    assert len(key.limits) == 4 and grant.priority > key.priority
