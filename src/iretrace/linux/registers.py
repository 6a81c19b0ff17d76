"""Guest registers that a host step only moves: what it does is worked out once, for all their values.

Between an exit and the next VMRUN KVM copies RIP, RSP, RFLAGS and RAX about, and mostly does not look at them. A step
gets them as `Opaque` numbers, which note every use but a copy. A result holds for all values of the registers that
were not looked at, and says where they ended up. KVM's own copies of registers, which it makes on every exit, are no
part of a state while the guest runs: in their place a step finds numbers that must not be looked at before they are
written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from iretrace.linux.notes import Uses
from iretrace.linux.unmodelled import Unmodelled
from iretrace.machine.vmcb import Vmcb
from iretrace.world.protocol import Packed, Pause

NAMES: tuple[str, ...] = Vmcb.field_names  # type: ignore[attr-defined]
MOVED = tuple(NAMES.index(name) for name in ("rip", "rsp", "rflags", "rax"))
"""Fields of the VMCB that are opaque to a step."""

STALE = -1
"""Register number of what a saved register holds before the exit has saved it."""

STALE_VALUE = 0x5A5A_5A5A_5A5A_5A5A

T = TypeVar("T")


class Opaque(int):
    """A number other than 0 that notes in `looked` that it was used for anything but being copied."""

    register: int
    looked: set[int]


def opaque(value: int, register: int, looked: set[int]) -> Opaque:
    """An opaque number: the value of a register (a field number of the VMCB, or STALE)."""
    made = Opaque(value)
    made.register, made.looked = register, looked
    return made


def name_of(value: int) -> tuple[int] | int:
    """What may be told of a number without looking at it: of an opaque one, which register it is."""
    return (value.register,) if type(value) is Opaque else int(value)


def opaque_among(values: tuple[int, ...]) -> list[int]:
    """Where among some numbers the opaque ones are: mostly there is none, or a few of hundreds."""
    kinds = tuple(map(type, values))
    found: list[int] = []
    for _ in range(kinds.count(Opaque)):
        found.append(kinds.index(Opaque, found[-1] + 1 if found else 0))
    return found


def _noting(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(*operands: Any) -> Any:
        for operand in operands:
            if type(operand) is Opaque:
                operand.looked.add(operand.register)
        return plain(*operands)

    return operation


for _name in (
    "add", "sub", "mul", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor", "truediv",
):  # fmt: skip
    setattr(Opaque, f"__{_name}__", _noting(f"__{_name}__"))
    setattr(Opaque, f"__r{_name}__", _noting(f"__r{_name}__"))
for _name in ("bit_length", "bit_count"):
    setattr(Opaque, _name, _noting(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "hash", "neg", "invert", "index"):
    setattr(Opaque, f"__{_name}__", _noting(f"__{_name}__"))


@dataclass(slots=True)
class Found:
    """What is known of a step for all values of the registers that it did not look at.

    moved: (field of the VMCB, register that ended up there). looked: the registers that it looked at. landed: for each
    opening the basic blocks that its sender executes then. uses: on what all this rests. way: how it was found
    (turning.Way); None where an earlier run has.
    """

    pause: Pause
    moved: tuple[tuple[int, int], ...] = ()
    looked: frozenset[int] = frozenset(MOVED)
    landed: tuple[tuple[int, ...], ...] = ()
    uses: tuple[Uses, ...] = ()
    way: Any = None

    def of(self, vmcb: Packed) -> Pause:
        """The result for the registers of a VMCB."""
        if all(self.pause.vmcb[place] == vmcb[register] for place, register in self.moved):
            return self.pause
        packed = list(self.pause.vmcb)
        for place, register in self.moved:
            packed[place] = vmcb[register]
        return self.pause._replace(vmcb=tuple(packed))


class Memo(Generic[T]):
    """What is known, by everything but registers, and by the registers that were looked at."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[tuple[int, ...], dict[tuple[int, ...], T]]] = {}

    def find(self, key: Hashable, vmcb: Packed) -> T | None:
        """What is known for the registers of a VMCB."""
        for looked, by_values in self._known.get(key, {}).items():
            found = by_values.get(tuple(vmcb[register] for register in looked))
            if found is not None:
                return found
        return None

    def all(self) -> Iterator[tuple[Any, tuple[int, ...], tuple[int, ...], T]]:
        """(key, registers that were looked at, their values, what is known)."""
        for key, by_looked in self._known.items():
            for looked, by_values in by_looked.items():
                for values, found in by_values.items():
                    yield key, looked, values, found

    def add(self, key: Hashable, vmcb: Packed, looked: frozenset[int], found: T) -> None:
        """Something that holds for all values of registers that are not in `looked`."""
        which = tuple(sorted(looked))
        by_values = self._known.setdefault(key, {}).setdefault(which, {})
        by_values[tuple(vmcb[register] for register in which)] = found


def general(vmcb: Packed) -> Packed:
    """A VMCB in which opaque registers are all alike. 0 stays: C can tell it without anybody noticing."""
    packed = list(vmcb)
    for register in MOVED:
        packed[register] = 1 if packed[register] else 0
    return tuple(packed)


class Hidden:
    """The registers of one step in memory. words: word -> field of the VMCB that it is. saved: KVM's own copies."""

    def __init__(self, words: dict[int, int], saved: tuple[int, ...]) -> None:
        self.looked: set[int] = set()
        self._words = words
        self._saved = saved

    def hide(self, m: dict[int, int], stale: bool) -> None:
        """Before the step. stale: the guest ran since KVM saved its registers."""
        for word, register in self._words.items():
            if m.get(word):
                m[word] = opaque(m[word], register, self.looked)
        for word in self._saved if stale else ():
            m[word] = opaque(STALE_VALUE, STALE, self.looked)

    def all_again(self, values: tuple[int, ...], vmcb: Packed) -> tuple[int, ...]:
        """Numbers of another step; those that are opaque there are in this one, of a VMCB."""
        hidden = opaque_among(values)
        if not hidden:
            return values
        renewed = list(values)
        for at in hidden:
            renewed[at] = self._again(values[at], vmcb)
        return tuple(renewed)

    def _again(self, value: int, vmcb: Packed) -> Opaque:
        assert isinstance(value, Opaque)
        number = STALE_VALUE if value.register == STALE else vmcb[value.register]
        assert isinstance(number, int)
        return opaque(number, value.register, self.looked)

    def reveal(self, m: dict[int, int], enters: bool) -> tuple[tuple[int, int], ...]:
        """After the step: (field of the VMCB, register that is there). enters: the guest runs next.

        Raises Unmodelled if a saved register was looked at before it was saved.
        """
        moved = []
        for word in [word for word, value in m.items() if type(value) is Opaque]:
            value = m[word]
            assert isinstance(value, Opaque)
            m[word] = int(value)
            if word in self._words and value.register != STALE:
                moved.append((self._words[word], value.register))
            elif not (enters and word in self._saved):
                self.looked.add(value.register)
        if STALE in self.looked:
            raise Unmodelled("a guest register is looked at after an exit and before svm_vcpu_run() has saved it")
        return tuple(moved)
