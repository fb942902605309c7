"""The laws of labels, proved for all labels at once by Z3 on the *source* of `router.residency.label`.

The functions under proof are not copied: their source is read, `and` is turned into Z3's conjunction, and the result is run
on bit vectors of 64 zones and 64 duties. The specification beside it is written bit by bit, as the semantics state it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import z3

from router.residency import label as label_module

BITS = 64


@dataclass(frozen=True)
class SymbolicLabel:
    """A `Label` whose masks are bit vectors."""

    process: Any
    store: Any
    duties: Any

    def meet(self, other: SymbolicLabel) -> SymbolicLabel:
        """The real `Label.meet` on bit vectors."""
        return _symbolic(label_module.Label.meet)(self, other)

    def join(self, other: SymbolicLabel) -> SymbolicLabel:
        """The real `Label.join` on bit vectors."""
        return _symbolic(label_module.Label.join)(self, other)

    def is_within(self, other: SymbolicLabel) -> Any:
        """The real `Label.is_within` on bit vectors."""
        return _symbolic(label_module.Label.is_within)(self, other)


@dataclass(frozen=True)
class SymbolicEvidence:
    """An `Evidence` whose masks are bit vectors and whose expiry is a real number."""

    process: Any
    store: Any
    duties: Any
    expires: Any


class _Conjunctions(ast.NodeTransformer):
    """`a and b` as `And(a, b)`: Python's own would ask a symbolic term for its truth."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        name = "And" if isinstance(node.op, ast.And) else "Or"
        return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=node.values, keywords=[])


def _symbolic(function: Any) -> Any:
    """The function's own source, compiled to run on symbolic values."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    module = ast.fix_missing_locations(_Conjunctions().visit(tree))
    scope: dict[str, Any] = {"And": z3.And, "Or": z3.Or, "Label": SymbolicLabel}
    exec(compile(module, "<symbolic>", "exec"), scope)
    return scope[definition.name]


def _label(name: str) -> SymbolicLabel:
    return SymbolicLabel(*(z3.BitVec(f"{name}.{part}", BITS) for part in ("process", "store", "duties")))


def _same(a: SymbolicLabel, b: SymbolicLabel) -> Any:
    return z3.And(a.process == b.process, a.store == b.store, a.duties == b.duties)


def _has(mask: Any, bit: int) -> Any:
    return z3.Extract(bit, bit, mask) == 1


def specified(label: SymbolicLabel, evidence: SymbolicEvidence, now: Any) -> Any:
    """allow(L, E) of the semantics, element by element."""
    every = range(BITS)
    return z3.And(
        z3.Or([_has(evidence.process, i) for i in every]),
        z3.And([z3.Implies(_has(evidence.process, i), _has(label.process, i)) for i in every]),
        z3.And([z3.Implies(_has(evidence.store, i), _has(label.store, i)) for i in every]),
        z3.And([z3.Implies(_has(label.duties, i), _has(evidence.duties, i)) for i in every]),
        now < evidence.expires,
    )


def theorems() -> dict[str, Any]:
    """Every statement that has to hold for all labels, evidences and times, by name."""
    a, b, c = _label("a"), _label("b"), _label("c")
    evidence = SymbolicEvidence(*(z3.BitVec(f"e.{part}", BITS) for part in ("process", "store", "duties")), z3.Real("expires"))
    now = z3.Real("now")
    run = _symbolic(label_module.admits)

    def admits(label: SymbolicLabel) -> Any:
        return run(label, evidence, now)

    unknown = z3.BitVecVal(label_module.UNKNOWN, BITS)
    return {
        "meet is idempotent": _same(a.meet(a), a),
        "meet is commutative": _same(a.meet(b), b.meet(a)),
        "meet is associative": _same(a.meet(b).meet(c), a.meet(b.meet(c))),
        "meet is the greatest lower bound": z3.And(c.is_within(a), c.is_within(b)) == c.is_within(a.meet(b)),
        "join is the least upper bound": z3.And(a.is_within(c), b.is_within(c)) == a.join(b).is_within(c),
        "absorption": z3.And(_same(a.meet(a.join(b)), a), _same(a.join(a.meet(b)), a)),
        "is_within is reflexive": a.is_within(a),
        "is_within is antisymmetric": z3.Implies(z3.And(a.is_within(b), b.is_within(a)), _same(a, b)),
        "is_within is transitive": z3.Implies(z3.And(a.is_within(b), b.is_within(c)), a.is_within(c)),
        "admits is the specification": admits(a) == specified(a, evidence, now),
        "a stricter label admits no more": z3.Implies(z3.And(a.is_within(b), admits(a)), admits(b)),
        "a meet admits what both admit": admits(a.meet(b)) == z3.And(admits(a), admits(b)),
        "unknown is nowhere": z3.Implies(z3.And(a.process & unknown == 0, evidence.process & unknown != 0), z3.Not(admits(a))),
        "expired evidence admits nothing": z3.Implies(now >= evidence.expires, z3.Not(admits(a))),
    }


def refuted() -> list[str]:
    """The theorems that do not hold, with a counterexample each; none is what one wants."""
    failed = []
    for name, theorem in theorems().items():
        solver = z3.Solver()
        solver.add(z3.Not(theorem))
        if solver.check() != z3.unsat:
            failed.append(f"{name}: {solver.model() if solver.check() == z3.sat else 'undecided'}")
    return failed
