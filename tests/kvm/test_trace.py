from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from iretrace import kvm
from iretrace.kvm.hypervisor import BuiltinHypervisor
from iretrace.kvm.trace import NOT_KVM, Statements
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import SVM_EXIT_INTR, Vmcb
from iretrace.subset import unpack
from iretrace.world.protocol import Cause


def started(times: int) -> None:
    """A vCPU is created, and an NMI comes to it so many times."""
    builtin = BuiltinHypervisor("v6.1", "plain")
    pause = builtin.start()
    for number in range(times):
        vmcb = unpack(Vmcb, pause.vmcb)
        vmcb.exit_code = SVM_EXIT_INTR
        landing = ((0, 0, 1 + number % 4),)
        pause = builtin.step(pause.private, vmcb, Ghcb(), Cause.VMEXIT, (builtin.sender("nmi"),), landing, pause.debug)


def each_line(times: int) -> set[tuple[str, int]]:
    """What a plain trace function sees of the same."""
    found: set[tuple[str, int]] = set()
    folder = Path(kvm.__file__).parent

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if event == "line" and not frame.f_code.co_name.startswith("<"):
            found.add((f"kvm/{path.name}", frame.f_lineno))
        return trace if path.parent == folder and path.name not in NOT_KVM else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        started(times)
    finally:
        sys.settrace(before)
    return found


def test_functions_that_are_looked_at_no_more_hide_no_line() -> None:
    statements = Statements()
    for times in range(6):
        statements.add(partial(started, times))
        assert statements.lines == each_line(times) | statements.lines
    assert statements.lines == each_line(5)
