"""Marks in our KVM's functions tell which of its lines were executed, and nothing else is different for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from iretrace import kvm
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.lines import NOT_KVM, Marks, marks
from iretrace.kvm.svm_h import gif_set
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import SVM_EXIT_INTR, Vmcb
from iretrace.subset import unpack
from iretrace.world.protocol import Cause

Lines = set[tuple[str, int]]


def each_line(call: Callable[[], object]) -> Lines:
    """What a plain trace function sees of a call."""
    found: Lines = set()
    folder = Path(kvm.__file__).parent
    marks()
    asked = gif_set.__code__
    """What the driver asks for its view is no line of a step."""

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        asker = frame.f_back.f_code.co_filename if frame.f_back else ""
        if path.parent != folder or path.name in NOT_KVM or (frame.f_code is asked and asker.endswith("hypervisor.py")):
            return None
        if event == "line" and not frame.f_code.co_name.startswith("<"):
            found.add((f"kvm/{path.name}", frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return found


def started(times: int) -> BuiltinHypervisor:
    """A vCPU is created, and an NMI comes to it so many times."""
    builtin = BuiltinHypervisor("v6.1", "plain")
    pause = builtin.start()
    for number in range(times):
        vmcb = unpack(Vmcb, pause.vmcb)
        vmcb.exit_code = SVM_EXIT_INTR
        landing = ((0, 0, 1 + number % 4),)
        pause = builtin.step(pause.private, vmcb, Ghcb(), Cause.VMEXIT, (builtin.sender("nmi"),), landing, pause.debug)
    return builtin


@pytest.mark.parametrize("times", range(6))
def test_the_lines_behind_passed_marks_are_those_that_a_trace_function_sees(times: int) -> None:
    made: list[BuiltinHypervisor] = []
    seen = each_line(lambda: made.append(started(times)))
    assert marks().lines(made[0]._passed) == seen
    assert made[0].statements() == len(seen)


def test_what_is_only_looked_at_or_told_is_not_counted() -> None:
    builtin = started(2)
    before = builtin.statements()
    pause = builtin.start()
    builtin.view(pause.private)
    builtin.compare(pause.private)
    builtin.explain(pause.private, unpack(Vmcb, pause.vmcb), Ghcb(), Cause.RERUN, (builtin.sender("irq"),), ())
    assert builtin.statements() == before


TEXT = """def f(n):
    "A function."
    if n > 3:
        return 1
    elif n > 2:
        n = 0
    while n < 2:
        n = n + 1
        if n == 2:
            break
        n = n
    return n
"""


def module_of(text: str, path: Path) -> ModuleType:
    """A module with this text, without the marks."""
    path.write_text(text)
    module = ModuleType("made")
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), vars(module))
    return module


def test_each_way_through_a_function_has_its_lines(tmp_path: Path) -> None:
    module = module_of(TEXT, tmp_path / "made.py")
    made = Marks([module])
    for n, result, lines in ((4, 1, {3, 4}), (3, 2, {3, 5, 6, 7, 8, 9, 10, 11, 12}), (2, 2, {3, 5, 7, 12})):
        made.clear()
        assert module.f(n) == result
        assert {line for _, line in made.lines(made.passed())} == lines


def test_a_trace_sees_the_same_lines_in_the_same_order_with_and_without_marks(tmp_path: Path) -> None:
    module, plain = (module_of(TEXT, tmp_path / name) for name in ("made.py", "plain.py"))
    Marks([module])

    def told(function: Callable[[int], int], n: int) -> list[int]:
        lines: list[int] = []

        def trace(frame: FrameType, event: str, _argument: Any) -> Any:
            lines.extend([frame.f_lineno] * (event == "line"))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            function(n)
        finally:
            sys.settrace(before)
        return lines

    for n in range(5):
        assert told(module.f, n) == told(plain.f, n)
