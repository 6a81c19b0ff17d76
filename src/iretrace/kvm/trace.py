"""Which lines of this room a step executes: for traces, which cite our source as they cite a kernel's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

from iretrace.kvm.kvm_host import Vcpu
from iretrace.kvm.lines import NOT_KVM, ROOM
from iretrace.verdict import CLine
from iretrace.world.protocol import Executed, PauseKind, View

ASKS = {"svm_nmi_allowed": "nmi_pending", "svm_interrupt_allowed": "irq_pending"}
"""Functions that examine a waiting event, and the field of the view that says that it waits."""

HANDLERS = ("_interception", "sev_nmi_complete", "kvm_emulate_halt", "efer_trap")
"""How the names of exit handlers end."""

T = TypeVar("T")


@cache
def _file(code: CodeType) -> str:
    """ "kvm/svm.py" for code of our KVM; "" for any other."""
    path = Path(code.co_filename)
    if path.parent != ROOM or path.name in NOT_KVM or code.co_name.startswith("<"):
        return ""
    return f"kvm/{path.name}"


@cache
def _source(path: str) -> list[str]:
    return (ROOM.parent / path).read_text(encoding="utf-8").splitlines()


def cline(path: str, line: int, function: str) -> CLine:
    """A line of our source."""
    return CLine(path, line, function, _source(path)[line - 1].strip().split("  #")[0])


def first_line(function: Callable[..., object]) -> CLine:
    """A function's first statement."""
    code = inspect.unwrap(function).__code__
    lines = [line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno]
    return cline(_file(code), min(lines), code.co_name)


def _traced(call: Callable[[], T], trace: Callable[[FrameType, str, Any], Any]) -> T:
    """A call under sys.settrace(); whoever was tracing goes on afterwards."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


class Tracer:
    """Runs one step with tracing on."""

    def __init__(self, view: Callable[[Vcpu], View]) -> None:
        self._view = view
        self._lines: list[CLine] = []
        self._changes: list[tuple[CLine, View]] = []
        self._refusals: dict[str, CLine] = {}
        self._before: View | None = None
        self._first: View | None = None

    def run(self, call: Callable[[], T]) -> T:
        """The call's result."""
        return _traced(call, self._enter)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._local if _file(frame.f_code) else None

    def _local(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event in ("line", "return"):
            self._look(frame)
        if event == "line":
            self._lines.append(cline(_file(frame.f_code), frame.f_lineno, frame.f_code.co_name))
        elif event == "return" and frame.f_code.co_name in ASKS and not argument:
            self._refusals[frame.f_code.co_name] = self._lines[-1]
        return self._local

    def _look(self, frame: FrameType) -> None:
        """Note the last line if the view has changed."""
        vcpu = frame.f_locals.get("vcpu")
        if vcpu is None:
            return
        now = self._view(vcpu)
        if self._before is not None and now != self._before:
            self._changes.append((self._lines[-1], now))
        self._before = now
        self._first = self._first or now

    def executed(self, kind: PauseKind, after: View) -> Executed:
        """What the step has done; after: the view at its end."""
        declined = [line for name, line in self._refusals.items() if getattr(after, ASKS[name])]
        told = declined[-1] if declined and not after.event_inj and kind is not PauseKind.USERSPACE else None
        return Executed(tuple(self._lines), told, tuple(self._changes), self._handling(), self._first)

    def _handling(self) -> tuple[CLine, ...]:
        """Of the exit handlers that ran, the last statement of each that calls something."""
        last: dict[str, CLine] = {}
        for line in self._lines:
            if line.function.endswith(HANDLERS) and "(" in line.text and not line.text.startswith(("if", "return")):
                last[line.function] = line
        return tuple(last.values())
