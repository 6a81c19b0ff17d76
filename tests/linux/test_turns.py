from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux import prims
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.registers import opaque
from iretrace.linux.tree import open_tree
from iretrace.linux.turns import digest
from iretrace.litmus.corpus import select
from iretrace.verdict import Result


class Counted(TreeHypervisor):
    """A tree that counts how often a host step is executed."""

    steps = 0

    def _step(self, *arguments: object) -> object:  # type: ignore[override]
        self.steps += 1
        return super()._step(*arguments)  # type: ignore[arg-type]


def told(result: Result) -> tuple[object, ...]:
    """Everything of a result but how long it took."""
    found = result.verdict, result.reason, result.states, result.edges, result.outcomes
    return *found, result.trace, result.ledger


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("nmi-and-irq", "plain"), ("sev-es-irq-on-cold-stack", "sev-es")])
def test_merging_landings_saves_half_of_the_work_and_changes_nothing(tree_6_12: Path, name: str, kind: str) -> None:
    (test,) = select([name])
    each, merged = (Counted(open_tree(tree_6_12), vcpu=kind, merge=merge) for merge in (False, True))
    results = [check(test, kind, "tickless", hypervisor) for hypervisor in (each, merged)]
    assert told(results[0]) == told(results[1])
    assert merged.steps < 0.6 * each.steps


def nowhere() -> None:
    """Never on the stack, so that all of it counts."""


def at(place: int, local: int, memory: dict[int, int]) -> bytes:
    """The digest of one of two places, with a local and a memory."""
    if place:
        return digest(sys._getframe(), nowhere.__code__, memory)
    return digest(sys._getframe(), nowhere.__code__, memory)


def test_place_locals_and_memory_make_a_difference() -> None:
    seen = {at(place, local, {8: word}) for place in (0, 1) for local in (0, 1) for word in (0, 1)}
    assert len(seen) == 8


def test_the_order_in_which_memory_was_written_makes_none() -> None:
    assert len({at(0, 0, memory) for memory in ({8: 1, 16: 2}, {16: 2, 8: 1})}) == 1


def test_a_hidden_register_is_told_by_its_name_and_not_looked_at() -> None:
    looked: set[int] = set()
    first, second, other = opaque(5, 1, looked), opaque(6, 1, looked), opaque(5, 2, looked)
    digests = [at(0, 0, {8: value}) for value in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert not looked


# The models: what they have worked out when they come to a shared access is in their locals. -------------------------


def functions() -> dict[str, ast.FunctionDef]:
    tree = ast.parse(Path(prims.__file__).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def named(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def reaching() -> set[str]:
    """What comes to a shared access: the hooks, C code, and the models that call these."""
    found = {"shared", "blind", "call"}
    while True:
        more = {name for name, body in functions().items() if any(named(call) in found for call in calls(body))}
        if more <= found:
            return found
        found |= more


def before(node: ast.AST, reach: set[str]) -> Iterator[ast.AST]:
    """Parts of an expression that are worked out and kept while a call that reaches a shared access runs."""
    kept: list[ast.AST] = []
    for part in ast.iter_child_nodes(node):
        if any(named(call) in reach for call in calls(part)):
            yield from kept
            yield from before(part, reach)
        if isinstance(part, ast.expr) and not isinstance(node, ast.BoolOp | ast.stmt):
            kept.append(part)


def test_models_keep_nothing_that_depends_on_memory_while_they_access_shared_words() -> None:
    reach = reaching()
    assert "wake_up_process" in reach and "fls" not in reach
    kept = [part for body in functions().values() for part in before(body, reach)]
    assert kept
    plain = (ast.Name, ast.Constant, ast.Attribute)
    assert [ast.unparse(part) for part in kept if not isinstance(part, plain)] == []
