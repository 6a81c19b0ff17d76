from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from iretrace.check import check
from iretrace.explore.turns import digest, stack
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.legs import Base
from iretrace.linux.models import table
from iretrace.linux.registers import Found, Hidden, name_of, opaque
from iretrace.linux.tree import open_tree
from iretrace.linux.turning import Asked, Passage
from iretrace.litmus.corpus import select
from iretrace.verdict import Result
from iretrace.world.protocol import NO_HOST_DEBUG, Cause, Packed
from tests.kept import functions, kept, reaching


def executions(hypervisor: TreeHypervisor) -> list[int]:
    """Of each execution of a host step from now on, how many basic blocks it has run."""
    blocks: list[int] = []
    execute = hypervisor._steps.execute

    def noting(*arguments: Any, **named: Any) -> Any:
        come_to = execute(*arguments, **named)
        blocks.append(len(come_to[2].trace))
        return come_to

    hypervisor._steps.execute = noting  # type: ignore[method-assign]
    return blocks


def told(result: Result) -> tuple[object, ...]:
    """Everything of a result but how long it took."""
    found = result.verdict, result.reason, result.states, result.edges, result.outcomes
    return *found, result.trace, result.ledger


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "left"), [("merge", 0.6), ("remember", 0.8)])
@pytest.mark.parametrize(("name", "kind"), [("nmi-and-irq", "plain"), ("sev-es-irq-on-cold-stack", "sev-es")])
def test_what_saves_steps_changes_nothing(tree_6_12: Path, name: str, kind: str, reduction: str, left: float) -> None:
    """Landings that come to the same are merged, and what follows a turn is taken over. The ledger stays the same, too:
    what a step has executed that is left out was executed by the one before it."""
    (test,) = select([name])
    each, fewer = (TreeHypervisor(open_tree(tree_6_12), vcpu=kind, **{reduction: on}) for on in (False, True))  # type: ignore[arg-type]
    counts = [executions(hypervisor) for hypervisor in (each, fewer)]
    results = [check(test, kind, "tickless", hypervisor) for hypervisor in (each, fewer)]
    assert told(results[0]) == told(results[1])
    assert len(counts[1]) < left * len(counts[0])


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("nmi-and-irq", "plain"), ("nmi-waits-in-reset-hold", "sev-es")])
def test_milestones_save_most_of_what_steps_execute_and_change_nothing(tree_6_12: Path, name: str, kind: str) -> None:
    (test,) = select([name])
    whole, legs = (TreeHypervisor(open_tree(tree_6_12), vcpu=kind) for _ in range(2))
    whole.program.can_resume = lambda frame: False  # type: ignore[method-assign]
    counts = [executions(hypervisor) for hypervisor in (whole, legs)]
    results = [check(test, kind, "tickless", hypervisor) for hypervisor in (whole, legs)]
    assert told(results[0]) == told(results[1])
    assert whole.executed() == legs.executed()
    assert whole.conditions() == legs.conditions()
    assert sum(counts[1]) < 0.6 * sum(counts[0])


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("nmi-and-irq", "plain"), ("sev-es-irq-on-cold-stack", "sev-es")])
def test_a_run_from_any_milestone_comes_to_what_its_passage_came_to(tree_6_12: Path, name: str, kind: str) -> None:
    (test,) = select([name])
    hypervisor = TreeHypervisor(open_tree(tree_6_12), vcpu=kind)
    steps = hypervisor._steps
    known: list[tuple[Packed, Passage, bool]] = []
    add = steps._passages.add

    def noting(key: Hashable, vmcb: Packed, passage: Passage, exits: bool) -> None:
        known.append((vmcb, passage, exits))
        add(key, vmcb, passage, exits)

    steps._passages.add = noting  # type: ignore[method-assign]
    check(test, kind, "tickless", hypervisor)
    stood = [(*one, milestone) for one in known for milestone in one[1].milestones]
    for vmcb, passage, exits, milestone in stood[::5]:
        asked = Asked(None, vmcb, (), Cause.VMEXIT if exits else Cause.WAKE, (), NO_HOST_DEBUG)
        hidden = Hidden(steps._registers, steps.at.saved)
        pause, moved, _ = steps.execute(asked, (), hidden, base=Base(milestone, 0, (), (), ()))
        whole = Found(passage.pause, passage.moved).of(vmcb)
        assert Found(pause, moved).of(vmcb) == whole._replace(senders=(), log=(), openings=(), turns=())


def nowhere() -> None:
    """Never on the stack, so that all of it counts."""


def at(place: int, local: int, memory: dict[int, int]) -> bytes:
    """The digest of one of two places, with a local and a memory."""
    words = sorted((word, name_of(value)) for word, value in memory.items())
    if place:
        return digest(stack(sys._getframe(), nowhere.__code__, name_of), words, (), name_of)
    return digest(stack(sys._getframe(), nowhere.__code__, name_of), words, (), name_of)


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


def test_models_keep_nothing_that_depends_on_memory_while_they_access_shared_words() -> None:
    models = functions(sorted(Path(table.__file__).parent.glob("*.py")))
    reach = reaching(models, {"shared", "blind", "call"})
    assert "wake_up_process" in reach and "fls" not in reach
    assert kept(models, reach, {"task"}) == []


def test_what_is_kept_is_found() -> None:
    text = "def f(run):\n    return g(1) + run.shared() or run.a + run.shared() if run.b else run.shared() + 1\n"
    known = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert kept(known, {"shared"}) == ["g(1)", "run.a"]


def test_how_large_the_numbers_in_code_are_is_no_part_of_a_place() -> None:
    """Numbers of basic blocks differ from process to process; instructions with larger ones are longer."""
    places = []
    for values in (range(300), [0] * 300):
        text = "def f(here):\n" + "".join(f" a={value}\n" for value in values) + " a=299\n here()\n"
        scope: dict[str, Any] = {}
        exec(compile(text, "<f>", "exec"), scope)
        stacks: list[list[Any]] = []
        scope["f"](lambda stacks=stacks: stacks.append(stack(sys._getframe().f_back, nowhere.__code__, name_of)))
        places.append((stacks[0][:4], len(scope["f"].__code__.co_code)))
    assert places[0][0] == places[1][0]
    assert places[0][1] > places[1][1]


def test_what_lowers_a_function_is_no_part_of_a_place() -> None:
    def beside(call: Callable[[], list[Any]]) -> list[Any]:
        return call()

    def here() -> list[Any]:
        return stack(sys._getframe(), test_what_lowers_a_function_is_no_part_of_a_place.__code__, int, beside.__code__)

    assert beside(here) == here()
