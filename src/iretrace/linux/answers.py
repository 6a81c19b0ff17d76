"""What rules can answer where C does not: functions that are not executed from source, globals, static keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from iretrace.linux.ctree import Pos


class ConditionId(NamedTuple):
    """A leaf condition of the tree: ordinal counts the conditions of one line of one function from 0.

    Leaves are the operands of if, loops, ?:, && and ||, and the labels of a switch. Negating a label means that its
    values go to the default; negating the default means that its values go to the first label.
    """

    path: str
    line: int
    ordinal: int
    function: str


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
    """Where a model was called from: the place, the calling function, each argument's text and width in bits.

    pointee: for a pointer argument the width of what it points to (0 if that is no integer or pointer).
    """

    pos: Pos
    function: str
    texts: tuple[str, ...]
    bits: tuple[int, ...]
    pointee: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The function (or opaque macro) is answered by Python: call(run, *args), or call(run, site, *args) with site.

    returns: C type of the result where no prototype says so: "" (prototype; int for a macro), a type name such as
    "unsigned long" or "u64", "void", "0" (type of argument 0), "*0" (what argument 0 points to). The result is
    converted to it. by_address: arguments passed as `&arg` (for macros that take an lvalue). pauses: may return PAUSE.
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
    """A global variable that lives in memory.

    init: "zero", "source" (its C initializer), or "=NAME" (a copy of NAME's). writable: C code stores to it. A store
    to a word whose initial value is not 0 is an error, unless Program.materialise was told before the first run.
    """

    init: str = "zero"
    writable: bool = True


class Rules(Protocol):
    """What the lowering asks where C does not answer. Names are C names, path is the file of use."""

    @property
    def shared(self) -> frozenset[str]:
        """Members that other CPUs access, as "struct_tag.member"."""
        ...

    @property
    def opaque_structs(self) -> Mapping[str, int]:
        """Size in bytes of structs and unions whose definition cannot be found: {"struct foo": 64}."""
        ...

    @property
    def static_calls(self) -> Mapping[str, str]:
        """Prefix of static call names to the variable that holds the targets; the longest prefix wins.

        {"kvm_x86_": "svm_x86_ops", "kvm_x86_pmu_": "amd_pmu_ops"}
        """
        ...

    def function(self, name: str, path: str) -> Answer | None:
        """How the call of a function or opaque macro is answered; None: executed from source."""
        ...

    def global_(self, name: str, path: str) -> int | Storage | None:
        """A global's constant value, or its storage. None: const ones come from source, others are an error."""
        ...

    def static_key(self, name: str) -> bool | None:
        """Whether a static key is on; None: unknown, an error when asked."""
        ...
