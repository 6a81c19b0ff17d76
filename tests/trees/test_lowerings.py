"""What functions are lowered to, taken over from another run: as if all were lowered here."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from iretrace.check import check
from iretrace.cli.sources import TreeSource
from iretrace.linux.bodies import Bodies, changed_bodies
from iretrace.linux.ctree import Pos
from iretrace.linux.edits import Edit, make_patch
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.lowerings import KeptLowerings, Lowerings
from iretrace.linux.machine import Machine
from iretrace.linux.tree import Tree, open_tree
from iretrace.linux.used import Used
from iretrace.litmus.corpus import select
from iretrace.verdict import Result
from tests.trees.edits import A_STRUCT, FIX_IN_A_NEW_FUNCTION, MORE_LINES, NO_EVENT_REQUEST, patched

pytestmark = [pytest.mark.trees, pytest.mark.slow]

TESTS = ("nmi-complete-then-spin", "nmi-at-hlt")


class Ran(NamedTuple):
    """Tests that ran on a machine: results with all definitions that they used, and functions that were lowered."""

    machine: Machine
    found: list[tuple[Result, Used]]
    lowered: list[str]


def ran(machine: Machine) -> Ran:
    """The tests on a machine on which nothing has run."""
    lowered: list[str] = []
    machine.program.tell.append(lambda name, _: lowered.append(name))
    hypervisor = TreeHypervisor(machine.tree, machine=machine)
    found: list[tuple[Result, Used]] = []
    for test in select(TESTS):
        result = replace(check(test, "sev-es", "tickless", hypervisor), seconds=0)
        found.append((result, {name: one for part in hypervisor.definitions() for name, one in part.items()}))
    return Ran(machine, found, lowered)


@pytest.fixture(scope="module")
def kept(tree_6_12: Path) -> tuple[bytes, Ran]:
    """The text of the tree as it is, and what ran there."""
    tree = open_tree(tree_6_12)
    machine = Machine(tree)
    lowerings = Lowerings(machine)
    before = ran(machine)
    return lowerings.text(tree.read_so_far()), before


Kept = tuple[bytes, Ran]


def taking(text: bytes, tree: Tree) -> Machine:
    """A machine that has taken over a text."""
    machine = Machine(tree)
    nothing = Bodies(frozenset(), frozenset())
    machine.program.kept.append(
        KeptLowerings(text, machine, lambda _: changed_bodies(tree) if tree.patched else nothing)
    )
    return machine


def python(machine: Machine) -> dict[str, str]:
    """All Python that was made, without the numbers that come of its order."""
    program = machine.program
    found: dict[str, str] = {}
    for name in {block.name for block in program.blocks}:
        c_name = program.c_name(name)
        assert c_name is not None
        source = re.sub(r"\bp\d+\b", lambda match: str(program.models.get(match[0])), program.source_of(*c_name))
        found[name] = re.sub(r"\b(T|T\(|C_fail\()\d+", r"\1", re.sub(r"T\(\d+\)", "T()", source))
    return found


def lines(machine: Machine) -> set[tuple[str, tuple[Pos, ...]]]:
    """Where the statements of the basic blocks of all functions stand."""
    return {(block.name, block.statements) for block in machine.program.blocks}


def test_on_the_same_tree_no_function_is_lowered_again(kept: Kept, tree_6_12: Path) -> None:
    text, before = kept
    machine = taking(text, open_tree(tree_6_12))
    after = ran(machine)
    assert after.found == before.found
    assert after.lowered == []
    assert len(before.lowered) > 200
    assert python(machine) == python(before.machine)
    assert lines(machine) == lines(before.machine)


def test_tables_of_functions_are_not_read_again(kept: Kept, tree_6_12: Path) -> None:
    """Their words are known, but for those that nobody could compute."""
    text, before = kept
    machine = taking(text, open_tree(tree_6_12))
    ran(machine)
    there, here = ({made.name for made, _ in one.program.globals.filled()} for one in (before.machine, machine))
    assert {"apic_mmio_ops", "kvm_x86_ops", "svm_exit_handlers"} <= there
    assert not {"apic_mmio_ops", "svm_exit_handlers"} & here


@pytest.mark.parametrize(
    ("edits", "changed"),
    [
        (NO_EVENT_REQUEST, {"sev_handle_vmgexit"}),
        (MORE_LINES, set()),
        (FIX_IN_A_NEW_FUNCTION, {"sev_handle_vmgexit", "nmi_is_complete"}),
    ],
)
def test_on_a_patched_tree_only_what_has_changed_is_lowered(
    kept: Kept, tree_6_12: Path, edits: Sequence[Edit], changed: set[str]
) -> None:
    text, _ = kept
    tree = patched(tree_6_12, "a.patch", edits)
    fresh, after = ran(Machine(tree)), ran(taking(text, tree))
    assert after.found == fresh.found
    assert python(after.machine) == python(fresh.machine)
    assert lines(after.machine) == lines(fresh.machine)
    assert {name.removeprefix("f_").rpartition("_")[0] for name in after.lowered} >= changed
    assert len(after.lowered) < 10


def test_where_more_than_functions_may_have_changed_nothing_is_taken_over(kept: Kept, tree_6_12: Path) -> None:
    """To look at all definitions that functions rest on takes longer than to lower them."""
    text, _ = kept
    with pytest.raises(ValueError, match="another tree"):
        taking(text, patched(tree_6_12, "a.patch", A_STRUCT))


def changed(text: bytes, change: Callable[[list[str]], None]) -> bytes:
    """A text whose lines were changed."""
    lines = zlib.decompress(text).decode().split("\n")
    change(lines)
    return zlib.compress("\n".join(lines).encode())


def _header(lines: list[str], **values: object) -> None:
    lines[0] = json.dumps({**json.loads(lines[0]), **values})


def _cut_functions(lines: list[str]) -> None:
    lines[1:] = [line[: len(line) // 2] for line in lines[1:]]


def _no_leafs(lines: list[str]) -> None:
    _header(lines, leafs=[["strange", "x"]])


def _other_leafs(lines: list[str]) -> None:
    contents = json.loads(lines[0])["contents"]
    _header(lines, contents={own: [[-1.5], *rest] for own, (_, *rest) in contents.items()})


def _other_words(lines: list[str]) -> None:
    contents = json.loads(lines[0])["contents"]
    told = {
        own: [leafs, is_written, [[at, "x"] for at, _ in words]] for own, (leafs, is_written, words) in contents.items()
    }
    _header(lines, contents=told)


@pytest.mark.parametrize("change", [_cut_functions, _no_leafs, _other_leafs, _other_words])
def test_what_does_not_read_is_as_if_it_were_not_there(
    kept: Kept, tree_6_12: Path, change: Callable[[list[str]], None]
) -> None:
    text, before = kept
    assert ran(taking(changed(text, change), open_tree(tree_6_12))).found == before.found


def _other_object(lines: list[str]) -> None:
    (own, address, size), *rest = json.loads(lines[0])["objects"]
    _header(lines, objects=[(own, address, size), ("\tother\t1", address + 8, size), *rest])


def _line_less(lines: list[str]) -> None:
    del lines[-1]


@pytest.mark.parametrize("change", [_other_object, _line_less, lambda lines: lines.clear()])
def test_a_text_that_is_not_ours_is_refused(kept: Kept, tree_6_12: Path, change: Callable[[list[str]], None]) -> None:
    with pytest.raises(ValueError):
        taking(changed(kept[0], change), open_tree(tree_6_12))


def test_a_patched_tree_tells_nothing(tree_6_12: Path) -> None:
    plain = TreeSource(tree_6_12)
    source = plain.patched([("a.patch", make_patch(open_tree(tree_6_12), NO_EVENT_REQUEST))])
    for one in (plain, source):
        one.read()
        one.take_lowered(())
        one.open("sev-es")
    assert plain.lowered() != b""
    assert source.lowered() == b""


def test_nothing_is_told_where_nothing_was_lowered(tree_6_12: Path) -> None:
    assert Lowerings(Machine(open_tree(tree_6_12))).text({}) == b""
