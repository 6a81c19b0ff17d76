"""What is compared where two hypervisors should agree: asked of the tree, on a copy of the state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from iretrace.linux import memory
from iretrace.linux.host import KernelRun
from iretrace.linux.initial import Places, Spot
from iretrace.linux.types import Int, Struct
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.vm import Vm
from iretrace.world.protocol import Comparison

GET_EVENTS = "kvm_vcpu_ioctl_x86_get_vcpu_events"
"""What KVM_GET_VCPU_EVENTS calls."""

REQUESTS = ("EVENT", "NMI", "SMI", "IMMEDIATE_EXIT", "UNHALT", "TRIPLE_FAULT")
"""The requests about events."""

REQUEST_HEADERS = ("include/linux/kvm_host.h", "arch/x86/include/asm/kvm_host.h")
_REQUEST = re.compile(r"^#define\s+KVM_REQ_(\w+)\s+(KVM_ARCH_REQ(?:_FLAGS)?\()?(\d+)", re.MULTILINE)
_ARCH_BASE = re.compile(r"^#define\s+KVM_REQUEST_ARCH_BASE\s+(\d+)", re.MULTILINE)


class Comparer:
    """Makes comparisons. places are resolved once, on the first state."""

    def __init__(self, vm: Vm, places: Places, run: KernelRun) -> None:
        self._requests = request_numbers([vm.machine.tree.text(path) or "" for path in REQUEST_HEADERS])
        self._svm = {name: _found(places, run, f"svm.{name}") for name in SVM_MEMBERS}
        self._vcpu = _found(places, run, "svm.vcpu").address
        kind = vm.layout.named("struct kvm_vcpu_events")
        self._events = vm.program.space.allocate("vcpu_events", vm.layout.size_of(kind), vm.vcpu).address
        self._fields = list(_leaves(kind, "", 8 * self._events))

    def compare(self, make: Callable[[], KernelRun]) -> Comparison:
        """The comparison of a state; `make` makes a run on a copy of its memory."""
        run = make()
        get = {name: memory.load(run, spot.address, spot.bit, spot.width) for name, spot in self._svm.items()}
        bits = get["vcpu.requests"]
        debug = tuple(get[f"vcpu.arch.eff_db[{number}]"] for number in range(4))
        run.call(GET_EVENTS, self._vcpu, self._events)
        values = [(name, memory.load(run, bit // 8, bit % 8, width)) for name, bit, width in self._fields]
        return Comparison(
            requests=frozenset(name for name, number in self._requests.items() if bits >> number & 1),
            nmi_queued=get["vcpu.arch.nmi_queued.counter"],
            mp_state=get["vcpu.arch.mp_state"],
            events=tuple((name, value) for name, value in values if value),
            debug_registers=debug if get["vcpu.arch.switch_db_regs"] else (),
        )


SVM_MEMBERS = (
    "vcpu.requests", "vcpu.arch.nmi_queued.counter", "vcpu.arch.mp_state", "vcpu.arch.switch_db_regs",
    *(f"vcpu.arch.eff_db[{number}]" for number in range(4)),
)  # fmt: skip


def request_numbers(headers: list[str]) -> dict[str, int]:
    """The bits of the requests about events in kvm_vcpu.requests, as far as a tree has them, by name."""
    base = next((int(found[1]) for text in headers if (found := _ARCH_BASE.search(text))), 0)
    defined = {name: int(number) + (base if arch else 0) for text in headers for name, arch, number in _defines(text)}
    return {name: defined[name] for name in REQUESTS if name in defined}


def _defines(text: str) -> list[tuple[str, str, str]]:
    return _REQUEST.findall(text)


def _found(places: Places, run: KernelRun, place: str) -> Spot:
    spot = places.find(run, place)
    if spot is None:
        raise Unmodelled(f"this tree has no {place}")
    return spot


def _leaves(kind: object, prefix: str, bit: int) -> Iterator[tuple[str, int, int]]:
    """(name, first bit, width) of the integers of a struct, in its order, without padding."""
    assert isinstance(kind, Struct)
    for field in kind.body.fields:
        if isinstance(field.type, Struct):
            yield from _leaves(field.type, f"{prefix}{field.name}.", bit + field.bit)
        elif isinstance(field.type, Int) and field.name != "pad":
            yield f"{prefix}{field.name}", bit + field.bit, field.width or field.type.bits
