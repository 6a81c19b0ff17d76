"""Defects put back into real trees are convicted, and changes that no guest can see are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus import test as litmus
from iretrace.litmus.corpus import select
from iretrace.litmus.parse import parse
from iretrace.verdict import Result, Verdict
from tests.linux.mini import SVM, mini_tree
from tests.trees import edits
from tests.trees.edits import Edit, make_patch, patched

trees = pytest.mark.trees

MERGING = """\
test merging-nmis
about Two NMIs arrive while a third is in service: the latch holds one.
vcpu  sev-es
outside at start: nmi, at handler: nmi, at handler: nmi

main:
    start: spin
nmi:
    handler: mark n
    vmgexit nmi_complete
    iretq

reach: nmi_pending and nmi_masked
always n n
"""


def shipped(name: str) -> litmus.Test:
    (test,) = select([name])
    return test


def judge(root: Path, test: litmus.Test, *changes: tuple[Edit, ...]) -> Result:
    hypervisor = TreeHypervisor(patched(root, "mutant.patch", [edit for change in changes for edit in change]))
    return check(test, "sev-es", "tickless", hypervisor)


@trees
def test_unmasking_without_an_event_request_is_convicted(tree_6_12: Path) -> None:
    result = judge(tree_6_12, shipped("nmi-complete-then-spin"), edits.NO_EVENT_REQUEST)
    assert result.verdict is Verdict.VIOLATED
    assert result.reason.endswith("holds nmi_pending=1")  # and the mask is down


@trees
@pytest.mark.parametrize("change", [edits.REQUEST_IF_PENDING, edits.FIX_IN_A_NEW_FUNCTION, edits.POINTLESS_SINGLE_STEP])
def test_a_change_that_no_guest_can_see_is_acquitted(tree_6_12: Path, change: tuple[Edit, ...]) -> None:
    hypervisor = TreeHypervisor(patched(tree_6_12, "harmless.patch", change))
    for name in ("nmi-complete-then-spin", "nmi-complete-first", "two-nmis-on-cold-stack", "nmi-never-completed"):
        assert check(shipped(name), "sev-es", "tickless", hypervisor).verdict is Verdict.HOLDS, name
    assert check(shipped("nmi-complete-then-spin"), "sev-es", "ticking", hypervisor).verdict is Verdict.HOLDS


@trees
def test_an_iret_intercept_is_convicted_because_the_guest_gets_vc(tree_6_12: Path) -> None:
    result = judge(tree_6_12, shipped("vc-inside-nmi"), edits.INTERCEPT_IRET)
    assert result.verdict is Verdict.VIOLATED
    assert "#VC for its IRET" in result.reason


@trees
@pytest.mark.parametrize("series", ["tree_6_1", "tree_6_12"])
@pytest.mark.parametrize("change", [edits.QUEUE_OF_ONE, edits.BOOLEAN_PENDING])
def test_a_queue_that_holds_one_is_convicted_with_two(
    request: pytest.FixtureRequest, series: str, change: tuple[Edit, ...]
) -> None:
    result = judge(request.getfixturevalue(series), shipped("simultaneous-nmis"), change)
    assert result.verdict is Verdict.VIOLATED


@trees
def test_a_queue_that_always_holds_two_is_convicted_with_three_on_6_12(tree_6_12: Path) -> None:
    result = judge(tree_6_12, parse(MERGING, "merging.litmus"), edits.QUEUE_OF_TWO)
    assert result.verdict is Verdict.VIOLATED
    assert "the guest sees an NMI" in result.reason


@trees
def test_a_queue_that_always_holds_two_is_convicted_with_three_on_6_1(tree_6_1: Path) -> None:
    """With the mail's fix, so that the one defect does not hide the other."""
    test = parse(MERGING, "merging.litmus")
    assert judge(tree_6_1, test, edits.FIX_ON_6_1).verdict is Verdict.HOLDS
    result = judge(tree_6_1, test, edits.FIX_ON_6_1, edits.QUEUE_OF_TWO)
    assert result.verdict is Verdict.VIOLATED
    assert "the guest sees an NMI" in result.reason


@trees
@pytest.mark.parametrize("series", ["tree_6_1", "tree_6_12"])
def test_nmis_that_are_counted_but_not_examined_are_convicted(request: pytest.FixtureRequest, series: str) -> None:
    result = judge(request.getfixturevalue(series), shipped("maybe-nmi"), edits.NO_REQUEST_FOR_NMIS)
    assert result.verdict is Verdict.VIOLATED
    assert "nmi_masked" not in result.reason


@trees
def test_an_error_in_the_ghcb_for_nmi_complete_is_convicted(tree_6_12: Path) -> None:
    result = judge(tree_6_12, shipped("nmi-complete-first"), edits.NMI_COMPLETE_UNKNOWN)
    assert result.verdict is Verdict.VIOLATED
    assert "VMGEXIT(0x80000003) is not done but answered with an error" in result.reason


TWICE = "int f(int a)\n{\n\ta = 1;\n\ta = 1;\n\treturn a;\n}\n"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(SVM, "f", "a = 1;", "a = 2;"), "2 times, not once"),
        (Edit(SVM, "f", "b = 1;", ""), "0 times, not once"),
        (Edit(SVM, "g", "a = 1;", ""), "0 functions are called g"),
    ],
)
def test_an_edit_that_does_not_say_one_place_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        make_patch(mini_tree(tmp_path, {SVM: TWICE}), [edit])


def test_edits_of_one_file_become_one_patch(tmp_path: Path) -> None:
    root = mini_tree(tmp_path, {SVM: TWICE.replace("a = 1;", "a =\n\t\t2;", 1)}).root
    both = [Edit(SVM, "f", "a = 2;", "a++;"), Edit(SVM, "f", "a = 1;", "a--;", before="int b;\n")]
    tree = patched(root, "x.patch", both)
    assert tree.text(SVM) == "int b;\nint f(int a)\n{\n\ta++;\n\ta--;\n\treturn a;\n}\n"


@trees
@pytest.mark.parametrize(
    ("series", "change", "name", "kind", "vgif"),
    [
        ("tree_6_1", edits.GIF_OPENS_UNSEEN, "gif-holds-nmi", "plain", 1),
        ("tree_6_12", edits.GIF_OPENS_UNSEEN, "gif-holds-irq", "plain", 0),
        ("tree_7_3", edits.STGI_IS_NO_WINDOW, "gif-holds-nmi", "plain", 1),
        ("tree_7_3", edits.STGI_IS_NO_WINDOW, "iret-under-gif", "plain", 1),
        ("tree_7_3", edits.WINDOW_LOST_WITH_SVME, "svme-off-and-on", "plain", 1),
    ],
)
def test_an_event_that_gif_held_and_kvm_forgot_is_convicted(
    request: pytest.FixtureRequest, series: str, change: tuple[Edit, ...], name: str, kind: str, vgif: int
) -> None:
    tree = patched(request.getfixturevalue(series), "mutant.patch", change)
    result = check(shipped(name), kind, "tickless", TreeHypervisor(tree, options={"vgif": vgif}, vcpu=kind))
    assert result.verdict is Verdict.VIOLATED
    assert "that the processor would deliver never comes" in result.reason


@trees
def test_a_window_that_is_taken_away_only_where_it_does_not_matter_is_acquitted(tree_6_12: Path) -> None:
    """With virtual GIF CLGI does not exit."""
    tree = patched(tree_6_12, "harmless.patch", edits.IRQ_WINDOW_LOST_WITH_CLGI)
    hypervisor = TreeHypervisor(tree, vcpu="plain")
    assert check(shipped("irq-window-under-gif"), "plain", "tickless", hypervisor).verdict is Verdict.HOLDS


@trees
@pytest.mark.parametrize(
    ("series", "change"),
    [("tree_6_12", edits.IRET_DONE_AT_ITS_INTERCEPT), ("tree_7_3", edits.IRET_DONE_AT_ANY_EXIT)],
)
def test_an_iret_that_counts_as_done_before_it_has_read_its_frame_is_convicted(
    request: pytest.FixtureRequest, series: str, change: tuple[Edit, ...]
) -> None:
    tree = patched(request.getfixturevalue(series), "mutant.patch", change)
    result = check(shipped("iret-reads-a-cold-frame"), "plain", "tickless", TreeHypervisor(tree, vcpu="plain"))
    assert result.verdict is Verdict.VIOLATED
    assert "the guest sees an NMI at nmi+4" in result.reason
