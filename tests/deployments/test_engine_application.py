"""What Serve is told of an engine, without a cluster."""

import pytest

from deployments.engine import engine_application, engine_name, engine_settings
from router.config import ConfigError, parse_config

CONFIG = parse_config(
    {
        "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
        "residency": {"zone_label": "site"},
        "secret": {"env": "CLUSTER_SECRET"},
        "models": [
            {
                "id": "org/smol",
                "source": "x",
                "replicas": [{"zone": "eu", "count": 2, "gpus": 1, "cpus": 3}, {"zone": "us"}],
            }
        ],
        "targets": [
            {
                "id": "openai",
                "kind": "cloud",
                "url": "https://api.example.com",
                "zone": "cloud",
                "models": {"big": "b"},
                "credential": {"env": "OPENAI_API_KEY"},
            }
        ],
    }
)
MODEL = CONFIG.models[0]


def bound(application):
    return application._bound_deployment


def test_name_place_and_resources():
    deployment = bound(engine_application(CONFIG, MODEL, MODEL.replicas[0]))
    assert deployment.name == engine_name(MODEL, MODEL.replicas[0]) == "engine-org-smol-eu"
    assert deployment.num_replicas == 2
    options = deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (3, 1)
    assert options["label_selector"] == {"site": "eu"}
    assert not options.get("fallback_strategy")


def test_an_engine_never_inherits_the_secret_or_a_credential():
    assert engine_settings(CONFIG, MODEL, MODEL.replicas[0]).withhold == {"CLUSTER_SECRET", "OPENAI_API_KEY"}


def test_what_other_zones_and_keys_say_does_not_change_an_engine():
    more = CONFIG.model_copy(update={"slo": CONFIG.slo.model_copy(update={"ttft_ms": 9.0})})
    assert engine_settings(more, MODEL, MODEL.replicas[0]) == engine_settings(CONFIG, MODEL, MODEL.replicas[0])


def test_a_wrong_argument_is_refused_before_anything_starts():
    wrong = MODEL.model_copy(update={"args": ["--port", "1"]})
    with pytest.raises(ConfigError, match="--port"):
        engine_application(CONFIG, wrong, wrong.replicas[0])
