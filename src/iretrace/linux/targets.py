"""Functions by their address, for calls through pointers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iretrace.linux.ctree import Pos
from iretrace.linux.run import Run
from iretrace.linux.unmodelled import Unmodelled

if TYPE_CHECKING:
    from iretrace.linux.program import Program


class Targets(dict[int, Callable[..., Any]]):
    """Address -> callable."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def __missing__(self, address: int) -> Callable[..., Any]:
        with self.program.layout.notes.collecting():  # who took the address has noted this
            target = self[address] = self._find(address)
        return target

    def _find(self, address: int) -> Callable[..., Any]:
        found = self.program.function_at(address)
        if found is None:
            what = "NULL" if address == 0 else self.program.space.describe(address)
            raise Unmodelled(f"call through a pointer that is no function: {what}")
        name, path = found
        if self.program.rules.function(name, path) is None:
            namespace, callee = self.program.namespace, self.program.callee(name, Pos(path, 0)).name

            def target(run: Run, *args: Any) -> Any:
                return namespace[callee](run, *args)  # looked up each time: it may be emitted anew

        else:
            entry = self.program.entry(name, path)

            def target(run: Run, *args: Any) -> Any:
                self.program.rules.function(name, path)  # notes its row
                return entry(run, *args)

        return target
