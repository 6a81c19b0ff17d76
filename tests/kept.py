"""What Python keeps of an expression while it calls: nothing that is in no local (iretrace.explore.turns)."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

PLAIN = (ast.Name, ast.Constant)
"""What is the same whenever it is worked out as long as locals are the same."""


def functions(files: Iterable[Path]) -> dict[str, ast.FunctionDef]:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def _named(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def reaching(known: dict[str, ast.FunctionDef], hooks: set[str]) -> set[str]:
    """The functions that come to a hook, and the hooks."""
    found = set(hooks)
    while True:
        more = {name for name, body in known.items() if any(_named(call) in found for call in _calls(body))}
        if more <= found:
            return found
        found |= more


def _before(node: ast.AST, reach: set[str]) -> Iterator[ast.AST]:
    kept: list[ast.AST] = []
    for part in ast.iter_child_nodes(node):
        if any(_named(call) in reach for call in _calls(part)):
            yield from kept
            yield from _before(part, reach)
        called = isinstance(node, ast.Call) and part is node.func
        if isinstance(part, ast.expr) and not called and not isinstance(node, ast.BoolOp | ast.IfExp | ast.stmt):
            kept.append(part)


def kept(known: dict[str, ast.FunctionDef], reach: set[str], constant: Collection[str] = ()) -> list[str]:
    """What is worked out before a call that comes to a hook, kept meanwhile, and neither local nor constant.

    constant: members that never change."""
    parts = [part for body in known.values() for part in _before(body, reach)]
    assert parts
    members = [part for part in parts if isinstance(part, ast.Attribute) and part.attr in constant]
    return [ast.unparse(part) for part in parts if not isinstance(part, PLAIN) and part not in members]
