"""What host steps came to, and the verdicts that rest on them, taken over from another run: as if all were executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.bodies import Bodies, changed_bodies
from iretrace.linux.edits import SEV, SVM, Edit
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree
from iretrace.linux.used import Used
from iretrace.litmus.corpus import select
from iretrace.verdict import Result, Verdict
from tests.trees.edits import (
    FIX_IN_A_NEW_FUNCTION,
    MORE_LINES,
    NO_EVENT_REQUEST,
    QUEUE_OF_ONE,
    patched,
)

pytestmark = [pytest.mark.trees, pytest.mark.slow]

TESTS = ("nmi-complete-then-spin", "nmi-at-hlt", "sev-es-irq-on-cold-stack")

OTHER_WORDS = (Edit(SEV, "sev_handle_vmgexit", "svm->nmi_masked = false;", "svm->nmi_masked = !true;"),)
"""The same in other words."""

ONE_WORD = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "svm->nmi_masked = false;",
        "svm->nmi_masked = false;\n\t\tsvm->soft_int_old_rip = 7;",
    ),
)
"""Of the state a word changes with which nobody does anything."""

ANOTHER_STATE = (
    Edit(SVM, "svm_vcpu_run", "trace_kvm_entry(vcpu", "vcpu->arch.l1tf_flush_l1d = true;\n\ttrace_kvm_entry(vcpu"),
)
"""The first VMRUN finds a state that is none of those that were kept."""

NOTHING = Bodies(frozenset(), frozenset())


def anything(_read: Mapping[str, str]) -> Bodies | None:
    """More than bodies may have changed."""
    return None


def told(hypervisor: TreeHypervisor, result: Result) -> tuple[Result, Used]:
    """A result but for how long it took, and all definitions that it used."""
    used: Used = {}
    for part in hypervisor.definitions():
        used.update(part)
    return replace(result, seconds=0), used


def results(hypervisor: TreeHypervisor) -> dict[str, tuple[Result, Used]]:
    """Of all tests, which are remembered."""
    found = {}
    for test in select(TESTS):
        result = check(test, "sev-es", "tickless", hypervisor)
        hypervisor.remember(test.name, test.name)
        found[test.name] = told(hypervisor, result)
    return found


def count(hypervisor: TreeHypervisor) -> list[int]:
    """One number for each execution from now on."""
    executed: list[int] = []
    execute = hypervisor._steps.execute
    hypervisor._steps.execute = lambda *args, **named: executed.append(1) or execute(*args, **named)  # type: ignore
    return executed


@pytest.fixture(scope="module")
def kept(tree_6_12: Path) -> tuple[bytes, dict[str, tuple[Result, Used]]]:
    """The text of the tree as it is, and the results there."""
    tree = open_tree(tree_6_12)
    hypervisor = TreeHypervisor(tree)
    found = results(hypervisor)
    return hypervisor.told_steps(tree.read_so_far()), found


Kept = tuple[bytes, dict[str, tuple[Result, Used]]]


def test_on_the_same_tree_nothing_is_executed_again(kept: Kept, tree_6_12: Path) -> None:
    text, before = kept
    hypervisor = TreeHypervisor(open_tree(tree_6_12))
    hypervisor.take_steps(text, lambda _read: NOTHING)
    executed = count(hypervisor)
    assert results(hypervisor) == before
    assert hypervisor.told_steps({}) == b""
    for name, (result, used) in before.items():
        recalled = hypervisor.recall(name)
        assert recalled is not None and recalled.told == name
        ledger = replace(result.ledger, statements=hypervisor.statements(), assumptions=hypervisor.assumptions())
        assert told(hypervisor, replace(result, ledger=ledger)) == (result, used)
    assert not executed


@pytest.mark.parametrize(
    ("edits", "left", "by_bodies"),
    [
        (OTHER_WORDS, 0.7, True),
        (NO_EVENT_REQUEST, 0.9, False),
        (QUEUE_OF_ONE, 0.9, True),
        (MORE_LINES, 0.7, True),
        (FIX_IN_A_NEW_FUNCTION, 0.9, False),
        (FIX_IN_A_NEW_FUNCTION, 0.9, True),
        (ANOTHER_STATE, 1.0, True),
    ],
)
def test_on_a_patched_tree_results_are_as_if_all_were_executed(
    kept: Kept, tree_6_12: Path, edits: Sequence[Edit], left: float, by_bodies: bool
) -> None:
    """However the patch is looked at: whether it changes bodies only, or all definitions one by one."""
    text, before = kept
    tree = patched(tree_6_12, "a.patch", edits)
    fresh, taking = TreeHypervisor(tree), TreeHypervisor(tree)
    executed, fewer = count(fresh), count(taking)
    expected = results(fresh)
    try:
        taking.take_steps(text, lambda _read: changed_bodies(tree) if by_bodies else None)
    except ValueError:
        assert edits is ANOTHER_STATE
    for name, (result, _) in before.items():
        recalled = taking.recall(name) if result.trace is None else None
        if recalled is not None:
            ledger = replace(result.ledger, statements=taking.statements(), assumptions=taking.assumptions())
            assert told(taking, replace(result, ledger=ledger))[1] == expected[name][1]
            assert replace(result, ledger=ledger, seconds=0) == expected[name][0]
    assert results(taking) == expected
    assert len(fewer) <= left * len(executed)


def test_verdicts_stand_that_the_patch_cannot_change(kept: Kept, tree_6_12: Path) -> None:
    """Steps that use what it changes are executed again, and come to the same."""
    text, before = kept
    tree = patched(tree_6_12, "a.patch", OTHER_WORDS)
    hypervisor = TreeHypervisor(tree)
    hypervisor.take_steps(text, lambda _read: changed_bodies(tree))
    executed = count(hypervisor)
    holds = [name for name, (result, _) in before.items() if result.verdict is Verdict.HOLDS]
    recalled = [name for name in holds if hypervisor.recall(name) is not None]
    assert "nmi-complete-then-spin" in recalled
    assert executed


@pytest.mark.parametrize("edits", [NO_EVENT_REQUEST, ONE_WORD])
def test_verdicts_fall_where_steps_come_to_something_else(kept: Kept, tree_6_12: Path, edits: Sequence[Edit]) -> None:
    text, before = kept
    tree = patched(tree_6_12, "a.patch", edits)
    hypervisor = TreeHypervisor(tree)
    hypervisor.take_steps(text, lambda _read: changed_bodies(tree))
    assert before["nmi-complete-then-spin"][0].verdict is Verdict.HOLDS
    assert hypervisor.recall("nmi-complete-then-spin") is None
    assert hypervisor.recall("no such test") is None


@pytest.fixture(scope="module")
def refusing(tree_6_12: Path) -> TreeHypervisor:
    """One of another kind."""
    return TreeHypervisor(open_tree(tree_6_12), vcpu="plain")


def changed(text: bytes, change: Callable[[list[str]], None]) -> bytes:
    """A text whose lines were changed."""
    lines = zlib.decompress(text).decode().split("\n")
    change(lines)
    return zlib.compress("\n".join(lines).encode())


def _cut_steps(lines: list[str]) -> None:
    lines[2:] = ["[1, 2"] * (len(lines) - 2)


def _cut_all(lines: list[str]) -> None:
    del lines[1:]


def _other_setting(lines: list[str]) -> None:
    lines[0] = json.dumps({**json.loads(lines[0]), "setting": "0"})


@pytest.mark.parametrize("change", [_other_setting, lambda lines: lines.clear()])
def test_a_text_that_is_not_ours_is_refused(
    kept: Kept, refusing: TreeHypervisor, change: Callable[[list[str]], None]
) -> None:
    with pytest.raises(ValueError):
        refusing.take_steps(changed(kept[0], change), anything)


@pytest.mark.parametrize("text", [b"", b"nothing", zlib.compress(b"{}")[:-2], zlib.compress(b"[1]")])
def test_what_is_no_text_is_refused(text: bytes, refusing: TreeHypervisor) -> None:
    with pytest.raises(ValueError):
        refusing.take_steps(text, anything)


def test_lines_that_do_not_read_are_as_if_they_were_not_there(kept: Kept, tree_6_12: Path) -> None:
    text, before = kept
    hypervisor = TreeHypervisor(open_tree(tree_6_12))
    with pytest.raises(ValueError, match="no steps of this hypervisor"):
        hypervisor.take_steps(changed(text, _cut_all), anything)
    hypervisor.take_steps(changed(text, _cut_steps), lambda _read: NOTHING)
    assert hypervisor.recall("nmi-at-hlt") is None
    assert results(hypervisor) == before


def test_another_kind_of_vcpu_has_other_states(kept: Kept, refusing: TreeHypervisor) -> None:
    with pytest.raises(ValueError, match="other states"):
        refusing.take_steps(kept[0], anything)


TELL = """
import hashlib, json, sys, zlib
from pathlib import Path
from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.linux.tree import open_tree
from iretrace.litmus.corpus import select

tree, *names = sys.argv[1:]
hypervisor = TreeHypervisor(open_tree(Path(tree)))
for name in names:
    (test,) = select([name])
    check(test, "sev-es", "tickless", hypervisor)
header, index, *lines = zlib.decompress(hypervisor.told_steps({})).decode().split("\\n")
counts = json.loads(header)["counts"]
senders = lines[sum(counts[:-1]) :]
ends = {}
for key, found in json.loads(index).items():
    for looked, values, number in found:
        _, _, _, state, _, openings, turns, *_ = json.loads(lines[sum(counts) + number])
        turns = [(place, senders[rest]) for place, rest in turns]
        ends[key + str(looked) + str(values)] = lines[counts[0] + state], openings, turns
print(hashlib.sha256(json.dumps(sorted(ends.items())).encode()).hexdigest(), len(ends))
"""


def test_every_process_tells_steps_alike(tree_6_12: Path) -> None:
    """Whatever the order of the tests: addresses, names, digests of places, states at the end."""
    names = ["nmi-at-hlt", "sev-es-irq-on-cold-stack"]
    says = []
    for seed, order in (("1", names), ("2", names[::-1])):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", TELL, str(tree_6_12), *order]
        says.append(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert says[0] == says[1]
    assert int(says[0].split()[1]) > 400
