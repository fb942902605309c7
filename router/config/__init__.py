"""What the YAML may say: validated, immutable, and hashed into a policy epoch.

Pydantic lives here, at the edge, and nowhere else: `router.compiled.compile_policy` turns a `Config` into the frozen structs the
hot path uses. `load_file` reads either a Ray Serve config (`applications[].args` of the one that imports `deployments`) or the
bare mapping those `args` hold.
"""

from router.config.access import Credential, Listen, PublicListen, moment_of
from router.config.capture import Capture
from router.config.check import ANY, AUTO, LOCAL, zones_in
from router.config.models import ExternalTarget, Model, Replicas, Tls
from router.config.read import digest_of, epoch_of, explain, home, load_file, parse_config, parse_recorded, read_args, read_layers
from router.config.schema import Allowance, Config, Jwt, Key, Secret
from router.config.strict import ConfigError
from router.config.yaml_text import parse_yaml, read_bounded, read_watched

__all__ = [
    "ANY",
    "AUTO",
    "LOCAL",
    "Allowance",
    "Capture",
    "Config",
    "ConfigError",
    "Credential",
    "ExternalTarget",
    "Jwt",
    "Key",
    "Listen",
    "Model",
    "PublicListen",
    "Replicas",
    "Secret",
    "Tls",
    "digest_of",
    "epoch_of",
    "explain",
    "home",
    "load_file",
    "moment_of",
    "parse_config",
    "parse_recorded",
    "parse_yaml",
    "read_args",
    "read_bounded",
    "read_layers",
    "read_watched",
    "zones_in",
]
