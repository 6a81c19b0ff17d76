"""Small changes to the machine's rules, made by a systematic walk over their source, one at a time."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from types import FunctionType, ModuleType

SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
KINDS = ("remove", "negate", "shift", "swap", "drop first", "drop last")
CONDITIONS = ast.Compare | ast.Call | ast.BoolOp
SIMPLE = ast.Expr | ast.Return | ast.Assign | ast.AugAssign | ast.Break
CHANGED = SIMPLE | ast.If | ast.IfExp | ast.Constant | ast.Compare | ast.BoolOp
"""What is changed at all."""


@dataclass(frozen=True)
class Mutant:
    """One change. what: function, and the statement or expression that changes, with what becomes of it."""

    function: FunctionType
    tree: ast.Module
    what: str


def functions(module: ModuleType) -> list[FunctionType]:
    """The functions that a module defines."""
    made = [f for f in vars(module).values() if isinstance(f, FunctionType) and f.__module__ == module.__name__]
    return sorted(made, key=lambda f: f.__code__.co_firstlineno)


def mutants(function: FunctionType) -> Iterator[Mutant]:
    """Every change to a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    changing = [number for number, node in enumerate(ast.walk(tree)) if isinstance(node, CHANGED)]
    for number, kind in product(changing, KINDS):
        changed = deepcopy(tree)
        node = list(ast.walk(changed))[number]
        before = ast.unparse(_statement(changed, node)).splitlines()[0]
        if _change(changed, node, kind):
            at = getattr(node, "col_offset", 0)
            yield Mutant(function, changed, f"{function.__name__}: {kind} at {at} of `{before}`")


def _statement(tree: ast.Module, node: ast.AST) -> ast.AST:
    """The smallest statement that holds a node."""
    holding = [part for part in ast.walk(tree) if isinstance(part, ast.stmt) and node in ast.walk(part)]
    return holding[-1] if holding else tree


def _change(tree: ast.Module, node: ast.AST, kind: str) -> bool:
    """Change a node in place, if this kind of change is for it."""
    if kind == "remove":
        return _remove(tree, node)
    if kind == "negate" and isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "negate" and isinstance(node, ast.Return) and isinstance(node.value, CONDITIONS):
        node.value = ast.UnaryOp(ast.Not(), node.value)
    elif kind == "shift" and isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    elif kind == "swap" and isinstance(node, ast.Constant) and type(node.value) is bool:
        node.value = not node.value
    elif kind == "swap" and isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif kind == "swap" and isinstance(node, ast.BoolOp):
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif kind == "drop first" and isinstance(node, ast.BoolOp):
        node.values = node.values[1:] if len(node.values) > 2 else [node.values[1]] * 2
    elif kind == "drop last" and isinstance(node, ast.BoolOp):
        node.values = node.values[:-1] if len(node.values) > 2 else [node.values[0]] * 2
    else:
        return False
    return True


def _remove(tree: ast.Module, node: ast.AST) -> bool:
    """Replace a statement by `pass`; not docstrings, declarations and results."""
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
        return False
    if not isinstance(node, SIMPLE) or (isinstance(node, ast.Return) and node.value is not None):
        return False
    for parent in ast.walk(tree):
        for name in ("body", "orelse"):
            body = getattr(parent, name, None)
            if isinstance(body, list) and node in body:
                body[body.index(node)] = ast.Pass()
                return True
    return False


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The function is changed for everybody who has imported it, and then itself again."""
    function = mutant.function
    code = compile(ast.fix_missing_locations(mutant.tree), "<mutant>", "exec")
    scope: dict[str, FunctionType] = {}
    exec(code, function.__globals__, scope)
    original = function.__code__
    function.__code__ = scope[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = original
