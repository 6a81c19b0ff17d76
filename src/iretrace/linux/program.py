"""A kernel tree's C as callable Python: functions are lowered when they are first called, rules answer what is not C.

    program = Program(index, layout, rules)
    run = program.run()
    run.call("svm_get_nmi_mask", vcpu)

A value is the C value as an int: signed types negative where C is negative, pointers unsigned. Memory is `Run.m`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from iretrace.linux.ctree import Pos


class Unmodelled(Exception):
    """Something that the run needs and that nobody answers. where: the C place; row: the TOML rows that would answer."""

    def __init__(self, what: str, where: Pos | None = None, row: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.row = row

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class Retry(Exception):
    """A function turned out to be pausing for the first time and was emitted anew: run the step again from its start.

    Happens a few times in a Program's life. Whoever called Run.call or Run.resume restores memory and tries again.
    """


class Pausing:
    """Type of PAUSE."""

    def __repr__(self) -> str:
        return "PAUSE"


PAUSE: Final = Pausing()
"""What a model returns to stop the run (declare Model.pauses); Run.call and Run.resume then return it as well."""


class ConditionId(NamedTuple):
    """A leaf condition of the tree: ordinal counts the conditions of one line of one function from 0."""

    path: str
    line: int
    ordinal: int
    function: str


# What rules answer. ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Neutral:
    """The function does nothing that is modelled; using its value is an error."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """The function (or opaque macro) only returns `value`. returns: see Model."""

    value: int
    returns: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a model was called from: the place, the calling function, and each argument's width in bits and text.

    pointee holds for a pointer argument the width of what it points to (0 if that is no integer or pointer).
    """

    pos: Pos
    function: str
    text: str
    bits: tuple[int, ...]
    pointee: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The function (or opaque macro) is answered by Python: call(run, *args), or call(run, site, *args) with site.

    returns: C type of the result where no prototype says so: "" (prototype; int for a macro), a basic type such as
    "unsigned long", "void", "0" (type of argument 0), "*0" (what argument 0 points to). The result is converted to it.
    by_address: arguments passed as `&arg` (for macros that take an lvalue). pauses: call may return PAUSE.
    """

    call: Callable[..., Any]
    returns: str = ""
    by_address: tuple[int, ...] = ()
    site: bool = False
    pauses: bool = False
    why: str = ""


Answer = Neutral | Value | Model


@dataclass(frozen=True, slots=True)
class Storage:
    """A global variable that lives in memory. init: "zero", "source" (its C initializer), or "=NAME" (copy of NAME's)."""

    init: str = "zero"


class Rules(Protocol):
    """What the lowering asks where C does not answer. Names are C names, path is the file of use."""

    shared: frozenset[str]
    """Members that other CPUs access, as "struct_tag.member"."""

    opaque_structs: Mapping[str, int]
    """Size in bytes of structs and unions whose definition is not to be found ("struct foo"), all of unknown content."""

    static_calls: Mapping[str, str]
    """Prefix of static call names to the variable with the targets: {"kvm_x86_": "svm_x86_ops"}; longest prefix wins."""

    def function(self, name: str, path: str) -> Answer | None:
        """How the call of a function or opaque macro is answered; None: executed from source."""
        ...

    def global_(self, name: str, path: str) -> int | Storage | None:
        """A global's constant value, or that it has storage. None: const ones come from source, others are an error."""
        ...

    def static_key(self, name: str) -> bool | None:
        """Whether a static key is on; None: unknown, an error when asked."""
        ...


# The run. --------------------------------------------------------------------------------------------------------


class Run:
    """One execution: memory, trace, stack and paused frames. Subclass it to carry what models need.

    m: 8-byte aligned address -> u64, absent means 0. trace: ids of the executed basic blocks in order.
    frames: paused frames, innermost first, hashable: what has to be kept (with m) to resume later.
    sp: next free stack address; give each thread of control its own area (see memory.STACK).
    """

    m: dict[int, int]
    trace: list[int]
    frames: tuple[tuple[Any, ...], ...]
    sp: int

    def shared(self, address: int, mask: int, write: bool) -> None:
        """Hook: the 8-byte word at `address` is about to be accessed, in the bits of `mask`; shared members only."""

    def call(self, name: str, *args: int, path: str = "") -> Any:
        """Call a C function (or its model). Returns its value (None for void), or PAUSE. Raises Unmodelled, Retry."""
        raise NotImplementedError

    def resume(self, value: int | None = None) -> Any:
        """Continue paused frames: the primitive that paused returns `value`. Returns as `call` does."""
        raise NotImplementedError
