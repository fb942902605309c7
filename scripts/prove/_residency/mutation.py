"""Mutation testing of the trusted base: small changes to its source, each of which the checks must notice.

A mutant changes one node of a function's syntax tree and is compiled; a forked child puts the new code into the *function that
everybody already holds* (`__code__`) and runs the simulation and then the unit tests of the trusted base. A child that ends
well has let the mutant live.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import inspect
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from _residency.simulate import run
from _residency.worlds import Rules

ROOT = Path(__file__).resolve().parents[3]
TRUSTED = {
    "router.residency.label": ("Label.meet", "Label.join", "Label.is_within", "admits", "translate_label", "translate_evidence"),
    "router.residency.resolve": ("read_tags", "_read_tag", "ceiling_at", "resolve_label"),
    "router.residency.guard": (
        "Place.is_allowed_by",
        "lets_in",
        "GuardPolicy.refuses",
        "check_pass",
        "_serialise",
        "GuardPolicy.knows",
        "StoredCeilings.find",
        "PolicyCopy._read",
        "PolicyCopy.current",
    ),
    "router.residency.engine_guard": ("EngineGuard.__call__", "EngineGuard._admit", "EngineGuard._watched"),
    "router.residency.inflight": (
        "Ticket.tighten",
        "Ticket.hold",
        "Ticket.is_as_in",
        "InFlight.declassify",
        "InFlight.current",
        "InFlight.adopt",
        "InFlight.recheck",
        "InFlight._narrow",
        "may_stay",
        "may_use",
        "_cut",
    ),
    "router.residency.lineage": (
        "meet_texts",
        "LineageBook.inherited",
        "LineageBook.record",
        "LineageBook._take",
        "LineageBook._look_up",
        "_narrows",
        "_is_traced",
    ),
    "router.residency.lineage_store": ("LineageStore.get", "LineageStore.put"),
    "router.residency.conversation": ("read_conversation", "_messages", "_is_answer", "_content"),
    "router.residency.cache_salt": ("cache_salt", "with_cache_salt"),
    "router.residency.cache_gate": ("owner_of", "may_keep", "may_give"),
}
TESTS = {
    "label": ("test_label.py", "test_inflight.py", "test_break_glass.py"),
    "resolve": ("test_inflight.py", "test_break_glass.py"),
    "guard": ("test_guard.py", "test_guard_policy.py"),
    "inflight": ("test_inflight.py", "test_followed_conversations.py", "test_scopes.py", "test_policy_races.py"),
    "lineage": ("test_taint.py", "test_followed_conversations.py"),
    "lineage_store": ("test_taint.py",),
    "conversation": ("test_taint.py", "test_followed_conversations.py"),
    "cache_salt": ("test_cache_salt.py",),
    "cache_gate": ("test_cache_gate.py",),
    "engine_guard": ("test_guard.py", "test_guard_policy.py"),
}
"""The unit tests of each module of the trusted base, by its name."""
_TOGETHER = (
    "`Ticket` sets target and exchange together in `begin` and clears both in `end`: one is None exactly when the other is"
)
_NO_UNKNOWN = "no label contains the bit of the unknown zone, so its meet with that bit alone is as empty"
EQUIVALENT = {
    "inflight.InFlight.recheck: and <-> or #0": _TOGETHER,
    "inflight.InFlight.recheck: operand 0 dropped #0": _TOGETHER,
    "inflight.InFlight.recheck: operand 1 dropped #0": _TOGETHER,
    "inflight.InFlight._narrow: condition true #2": "assigns a grant that equals the one there is",
    "inflight.InFlight._narrow: number + 1 #1": _NO_UNKNOWN,
    "inflight.InFlight._narrow: number + 1 #2": _NO_UNKNOWN,
    "lineage.LineageBook.inherited: number + 1 #1": "adds a prefix that is in `history` anyhow; only the union is looked up",
    "conversation.read_conversation: condition true #1": "adds the empty hash to the messages, under which no entry is ever kept",
    "conversation.read_conversation: number + 1 #0": "-2 for -1 as the place of an answer; only >= 0 and > 0 are asked of it",
}
"""Mutants that change nothing anybody could notice, by name, each with its proof."""
_LIMIT_CPU_S, _LIMIT_S = 60, 600
"""After so much CPU time, or time, a mutant hangs. The second is long, for on a busy machine waiting is no sign of anything."""
_SWAPS: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}


Function = ast.FunctionDef | ast.AsyncFunctionDef


class Mutant(NamedTuple):
    """One change: where it is, what it is, and the function's code with it."""

    module: str
    function: str
    line: int
    change: str
    code: CodeType
    number: int
    """Its place among the changes of this name in its function, from 0."""

    @property
    def name(self) -> str:
        """What it is called, whatever line it moves to."""
        return f"{self.module.removeprefix('router.residency.')}.{self.function}: {self.change} #{self.number}"


def mutants() -> Iterator[Mutant]:
    """Every mutant of the trusted base, in a fixed order."""
    for module_name, functions in TRUSTED.items():
        source = inspect.getsource(importlib.import_module(module_name))
        tree = ast.parse(source)
        for function in functions:
            node = _only_code(_find(tree, function))
            numbers: Counter[str] = Counter()
            for change, line, mutated in _changes(node):
                code = _compiled(tree, node, mutated, function)
                yield Mutant(module_name, function, line, change, code, numbers[change])
                numbers[change] += 1


def _find(tree: ast.AST, qualified: str) -> Function:
    node: Any = tree
    for name in qualified.split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == name)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def _only_code(function: Function) -> Function:
    """Without annotations, defaults and decorators: they are not in the code that a mutant replaces."""
    function.returns = None
    function.decorator_list, function.args.defaults, function.args.kw_defaults = [], [], [None] * len(function.args.kwonlyargs)
    for argument in function.args.args:
        argument.annotation = None
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant("")
    return function


def _changes(function: Function) -> Iterator[tuple[str, int, Function]]:
    """Copies of the function with one change each."""
    count = len(list(ast.walk(function)))
    for index in range(count):
        original = list(ast.walk(function))[index]
        for name, change in _possible(original):
            mutated = copy.deepcopy(function)
            change(list(ast.walk(mutated))[index])
            yield name, getattr(original, "lineno", function.lineno), mutated


def _possible(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            swapped = _SWAPS.get(type(operator))
            if swapped is not None:
                yield f"{type(operator).__name__} -> {swapped.__name__}", _set_item("ops", i, swapped)
    elif isinstance(node, ast.BoolOp):
        yield "and <-> or", lambda n: setattr(n, "op", _SWAPS[type(n.op)]())
        for i in range(len(node.values)):
            yield f"operand {i} dropped", _drop("values", i)
    elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
        yield f"{type(node.op).__name__} swapped", lambda n: setattr(n, "op", _SWAPS[type(n.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield "negation dropped", lambda n: setattr(n, "op", ast.UAdd()) if isinstance(n.op, ast.Invert) else _unnot(n)
    elif isinstance(node, ast.If):
        yield "condition true", lambda n: setattr(n, "test", ast.Constant(True))
        yield "condition false", lambda n: setattr(n, "test", ast.Constant(False))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield "number + 1", lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag turned", lambda n: setattr(n, "value", not n.value)


def _set_item(field: str, index: int, kind: type) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        getattr(node, field)[index] = kind()

    return change


def _drop(field: str, index: int) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        values = getattr(node, field)
        del values[index]
        if len(values) == 1:
            values.append(values[0])

    return change


def _unnot(node: Any) -> None:
    node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)


def _compiled(tree: ast.Module, function: Function, mutated: Function, qualified: str) -> CodeType:
    """The mutated function's code, compiled where the original stands."""
    body, mutated_body = function.body, mutated.body
    function.body = mutated_body
    try:
        module = ast.fix_missing_locations(copy.deepcopy(tree))
    finally:
        function.body = body
    code: Any = compile(module, "<mutant>", "exec", dont_inherit=True)
    for name in qualified.split("."):
        code = next(item for item in code.co_consts if isinstance(item, CodeType) and item.co_name == name)
    assert isinstance(code, CodeType)
    return code


def install(mutant: Mutant) -> None:
    """Put the mutant into the running program."""
    holder: Any = importlib.import_module(mutant.module)
    for name in mutant.function.split("."):
        holder = getattr(holder, name)
    holder = inspect.unwrap(holder)
    assert isinstance(holder, FunctionType)
    holder.__code__ = mutant.code


def survives(mutant: Mutant, pool: list[Rules], runs: int) -> bool:
    """Whether every check is content with the mutant; one that hangs counts as noticed.

    Args:
        mutant: what to put in.
        pool: policies for the simulation; made before, for a child that makes its own takes longer over it than over its runs.
        runs: of the simulation, before the unit tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                signal.setitimer(signal.ITIMER_PROF, _LIMIT_CPU_S)
                signal.alarm(_LIMIT_S)
                _silence()
                install(mutant)
                if _checks_pass(mutant, pool, runs, folder):
                    os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        return status == 0


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def _checks_pass(mutant: Mutant, pool: list[Rules], runs: int, folder: str) -> bool:
    import pytest

    for seed in range(runs):
        run(seed, pool)
    files = [str(ROOT / "tests" / "router" / name) for name in TESTS[mutant.module.rpartition(".")[2]]]
    # A folder of its own: pytest tidies the one that all of its runs share.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), f"--basetemp={folder}/pytest"]
    return pytest.main([*options, *files]) == 0


def preload() -> None:
    """Import in the parent what every child needs."""
    sys.path.insert(0, str(ROOT))
    importlib.import_module("hypothesis")
    importlib.import_module("pytest")
