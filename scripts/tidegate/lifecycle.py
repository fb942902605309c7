"""`up` and `down`: a Ray node, Serve on it, and the first answer; and all of it gone again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from router.config import Config, ConfigError
from tidegate import client, doctor, keys, models, processes, ray_node, render
from tidegate.effective import Overrides, read_effective, write_effective, zones_of_engines
from tidegate.finding import Level
from tidegate.home import Home, child_environment, make_private
from tidegate.processes import Run
from tidegate.waiting import Waiting, last_lines, latest_line, newest_log, waiting

QUESTION = "What is the capital of France?"
_POLL_S = 0.5
_END_UP_S = 45.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UpFailed(Exception):
    """The start did not work; the text is what a person needs to know."""


@dataclass(frozen=True)
class UpOptions:
    """The options of `up`. `timeout_s` bounds the wait for the first engine, in seconds."""

    config_file: Path
    overrides: Overrides
    zone: str | None
    """The zone of this machine; None: the one zone that engines are configured in."""
    timeout_s: float


def up(home: Home, options: UpOptions, console: Console) -> int:
    """Start everything and ask the first question; whatever goes wrong, nothing stays behind.

    Returns:
        The exit status.
    """
    try:
        with _one_at_a_time(home), _signals_as_interrupt():
            if (endpoint := running(home)) is not None:
                console.print(f"tidegate is already up on port {endpoint.port}; asking it again.")
                _first_answer(home, endpoint, console)
                return 0
            options = replace(options, zone=options.zone or _the_one_zone(options))
            _refuse_if_unfit(home, options, console)
            _end_leftovers(home, console)
            return _start(home, options, console)
    except (UpFailed, ConfigError, keys.KeyFileError, client.RouterError) as error:
        console.print(f"[red bold]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1


def down(home: Home, console: Console) -> int:
    """End everything `up` started, also when that `up` was killed or is still at work.

    Returns:
        How many processes were ended.
    """
    with waiting(console, "stopping") as line:
        count = _end_the_other_up(home)
        count += processes.stop_all(home.tag, report=lambda left: line.update(f"stopping, {left} processes left"))
    home.run_file.unlink(missing_ok=True)
    return count


def _end_the_other_up(home: Home) -> int:
    """End an `up` that is at work, as Ctrl-C would: else it might start the next thing after all had been ended.

    Returns:
        How many were ended: 0 or 1.
    """
    lock = home.state / "up.lock"
    told = ""
    deadline = time.monotonic() + _END_UP_S
    while lock.exists() and time.monotonic() < deadline:
        with lock.open() as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = held.read().strip()
        if holder == str(os.getpid()):
            return 0
        if holder and not told:
            told = holder
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(holder), signal.SIGTERM)
        time.sleep(_POLL_S)
    return int(bool(told))


def running(home: Home) -> client.Endpoint | None:
    """Where the present run listens, if there is one and it is ready."""
    run = processes.load_run(home)
    if run is None or not processes.find_ours(run.run_id):
        return None
    endpoint = client.Endpoint(run.port, run.admin_port)
    return endpoint if client.is_ready(endpoint) else None


def _the_one_zone(options: UpOptions) -> str | None:
    try:
        zones = zones_of_engines(read_effective(options.config_file, options.overrides).config)
    except ConfigError:
        return None  # the checks report it, together with what else is wrong
    if len(zones) > 1:
        raise UpFailed(f"engines are configured in several zones: say with --zone in which one this machine stands: {zones}")
    return zones[0] if zones else "local"


def _refuse_if_unfit(home: Home, options: UpOptions, console: Console) -> None:
    findings = doctor.examine(home, options.config_file, options.overrides, zone=options.zone)
    for finding in findings:
        if finding.level is not Level.OK and finding.check != doctor.LEFTOVERS:
            render.print_finding(console, finding)
    if any(finding.level is Level.ERROR for finding in findings):
        raise UpFailed("nothing was started. `tidegate doctor` repeats these checks")


def _end_leftovers(home: Home, console: Console) -> None:
    if processes.find_ours(home.tag):
        console.print("An earlier run is there but not ready; ending it first.")
        down(home, console)


def _start(home: Home, options: UpOptions, console: Console) -> int:
    effective = read_effective(options.config_file, options.overrides)
    config = effective.config
    served = str(write_effective(home, effective))
    run = Run(processes.new_run_id(home), served, config.listen.port, config.admin.port)
    environment = child_environment(home, run.run_id)
    processes.save_run(home, run)
    try:
        _prepare(home, config, environment, console)
        run = replace(run, ray_address=_start_ray(home, config, options.zone or "", environment, console))
        processes.save_run(home, run)
        environment["RAY_ADDRESS"] = run.ray_address
        _deploy(home, run, options.timeout_s, environment, console)
        _first_answer(home, client.Endpoint(run.port, run.admin_port), console)
        render.print_how_to_call(console, home, run)
        return 0
    except BaseException as reason:
        with _patient():
            if isinstance(reason, KeyboardInterrupt):
                console.print("Interrupted.")
            down(home, console)
        if isinstance(reason, KeyboardInterrupt):
            console.print("Everything that was started has been stopped.")
            return 130
        raise


def _prepare(home: Home, config: Config, environment: Mapping[str, str], console: Console) -> None:
    ray_node.ensure_token(home)
    if any(key.id == keys.QUICKSTART for key in config.keys):
        keys.ensure_quickstart_key(home)
    wants_default = any(models.is_default(model.source, home.root) for model in config.models)
    if wants_default and not models.is_prepared(home.root):
        what = f"converting {models.DEFAULT_MODEL} for vLLM (once, about a minute)"
        command = [sys.executable, "-m", "tidegate.models"]
        _run(what, command, environment, home, home.step_logs / "model.log", console)


def _start_ray(home: Home, config: Config, zone: str, environment: Mapping[str, str], console: Console) -> str:
    directory = ray_node.prepare_directory(home)
    command = ray_node.start_command(config, zone, directory)
    _run("starting Ray", command, environment, home, home.step_logs / "ray.log", console)
    address = ray_node.read_address(directory)
    if not address:
        raise UpFailed(f"Ray did not say where it listens. Its output:\n{last_lines(home.step_logs / 'ray.log', 15)}")
    return address


def _deploy(home: Home, run: Run, timeout_s: float, environment: Mapping[str, str], console: Console) -> None:
    before = newest_log(home.logs)
    log = home.step_logs / "serve.log"
    _run("handing the configuration to Ray Serve", ray_node.serve_command(Path(run.config)), environment, home, log, console)
    if "Submitted deploy config successfully" not in last_lines(log, 200):  # it exits with 0 either way
        raise UpFailed(f"`serve run` failed: {ray_node.reason_in(last_lines(log, 200))}\n  The whole output: {log}")
    watch = ray_node.Watch(environment, home.step_logs / "watch.log")
    try:
        with waiting(console, "waiting for Ray Serve") as line:
            _wait_until_ready(home, run, watch, line, timeout_s, ignore=before)
    finally:
        watch.close()
    console.print(f"[green]ready[/] after {line.elapsed_s:.0f} s")


def _wait_until_ready(home: Home, run: Run, watch: ray_node.Watch, line: Waiting, timeout_s: float, ignore: Path | None) -> None:
    endpoint = client.Endpoint(run.port, run.admin_port)
    while not client.is_ready(endpoint):
        state = watch.latest()
        if state.failure:
            raise UpFailed(f"the deployment failed.\n{state.failure}")
        log = newest_log(home.logs)
        line.update(f"waiting for {state.waiting_for or 'the first engine'}", latest_line(log) if log != ignore else "")
        if line.elapsed_s > timeout_s:
            tail = last_lines(log, 15) if log else "(no engine wrote a log)"
            raise UpFailed(
                f"no engine was ready after {timeout_s:.0f} s (waiting for {state.waiting_for or 'Ray Serve'}).\n{tail}\n"
                f"  The log: {log}\n  Next step: a larger model needs longer, e.g. --timeout {timeout_s * 2:.0f}"
            )
        time.sleep(_POLL_S)


def _first_answer(home: Home, endpoint: client.Endpoint, console: Console) -> None:
    key = keys.read_key(home.keys / f"{keys.QUICKSTART}.key")
    endpoint = replace(endpoint, key=key)
    question = client.Question(QUESTION)
    with waiting(console, f"asking: {QUESTION}"):
        answer = client.chat(endpoint, question)
    render.print_answer(console, question, answer)


def _run(what: str, command: Sequence[str], environment: Mapping[str, str], home: Home, log: Path, console: Console) -> None:
    """Run one step to its end with a status line; its output goes to `log`.

    Raises:
        UpFailed: it ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, waiting(console, what) as line:
        # A session of its own: Ctrl-C reaches this program alone, which then ends everything in order.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            cwd=home.root,
            start_new_session=True,
        )
        while process.poll() is None:
            line.update(detail=latest_line(log))
            time.sleep(0.1)
    if process.returncode:
        raise UpFailed(f"{what} failed:\n{last_lines(log, 15)}\n  The whole output: {log}")


@contextlib.contextmanager
def _one_at_a_time(home: Home) -> Iterator[None]:
    make_private(home.state)
    with (home.state / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpFailed("another `tidegate up` is at work here; wait for it, or end it with `tidegate down`") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Have SIGTERM and a closed terminal do what Ctrl-C does; and Ctrl-C also where a shell started us to ignore it."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Let an impatient second Ctrl-C not break off the tidying up, which takes seconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
