"""One execution of a program: memory, trace, stack, paused frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from iretrace.linux.memory import stack_area

if TYPE_CHECKING:
    from iretrace.linux.program import Program


class Retry(Exception):
    """A function turned out to be pausing for the first time and was emitted anew: run the step again from its start.

    Happens a few times in a Program's life. Whoever called Run.call or Run.resume restores memory and frames and tries
    again.
    """


class Pausing:
    """Type of PAUSE."""

    def __repr__(self) -> str:
        return "PAUSE"


PAUSE: Final = Pausing()
"""What a model returns to stop the run (declare Model.pauses); Run.call and Run.resume then return it as well."""

FUEL = 1_000_000
"""How often loops may go round in one call before they count as endless."""

Frame = tuple[str, int, tuple[int, ...]]
"""A paused call: function in the program, where it goes on, the locals that it needs."""


class Run:
    """One execution. Subclass it to carry what models need.

    m: 8-byte aligned address -> u64, absent means the initial content, which is 0 but for constant objects. trace: ids
    of the executed basic blocks in order. frames: paused frames, innermost first, hashable: with m all that has to be
    kept to resume later. sp: next free stack address; give each thread of control its own area (memory.stack_area).
    """

    def __init__(self, program: Program, m: dict[int, int] | None = None) -> None:
        self.program = program
        self.m: dict[int, int] = dict(program.initial) if m is None else m
        self.trace: list[int] = []
        self.frames: tuple[Frame, ...] = ()
        self.sp = stack_area(0)
        self.fuel = FUEL
        self.read = program.space.read
        self.write = program.space.write

    cells: frozenset[int] = frozenset()
    """Addresses of 8-byte words that hold shared members."""

    def shared(self, address: int, mask: int, write: bool) -> None:
        """Hook: the 8-byte word at `address` is about to be accessed, in the bits of `mask`; shared members only."""

    def rest(self) -> Any:
        """Hook: a statement begins at which a function that can be resumed may pause (PAUSE), or not (None)."""

    def call(self, name: str, *args: int, path: str = "") -> Any:
        """Call a C function (or its model). Returns its value (None for void), or PAUSE. Raises Unmodelled, Retry."""
        return self._run(self.program.entry(name, path), args)

    def call_address(self, address: int, *args: int) -> Any:
        """Call a C function through its address."""
        return self._run(self.program.functions[address], args)

    def resume(self, value: int | None = None) -> Any:
        """Continue the paused frames: the primitive that paused returns `value`. Returns as `call` does."""
        outer = self.frames
        while outer:
            (name, at, kept), *rest = outer
            outer = tuple(rest)
            self.frames = ()
            value = self._run(self.program.namespace[name], (0,) * self.program.params(name), at, kept, value)
            if value is PAUSE:
                self.frames += outer
                return PAUSE
        self.frames = ()
        return value

    def _run(self, function: Any, args: tuple[int, ...], *resumed: Any) -> Any:
        """Run generated code; errors get their C line."""
        read, before, sp = self.read, self.read.m, self.sp
        read.m = self.m
        self.fuel = FUEL
        try:
            return function(self, *args, *resumed)
        except Exception as error:
            self.sp = sp
            self.program.explain(error)
            raise
        finally:
            read.m = before
