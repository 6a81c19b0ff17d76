"""What a pause tells beside the state: places in the tree's memory that the world asks for at a hand-over."""

from __future__ import annotations

from typing import Any

from iretrace.linux import memory
from iretrace.linux.host import KernelRun
from iretrace.linux.initial import Places
from iretrace.linux.models.thread import THREAD_FLAGS, TIF_SIGPENDING
from iretrace.linux.physical import saved_debug
from iretrace.linux.records import WRITTEN_ON_EXIT, Record
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.vm import Vm
from iretrace.machine.vmcb import Vmcb
from iretrace.world.protocol import NO_HOST_DEBUG, Debug

SMRAM_RFLAGS = 0x170
SMRAM_RIP = 0x178
"""Offsets in the object `smram`, which begins at SMBASE + FE00h."""

EFER_IN_MAP = 0x820
"""The byte of the MSR permission map that begins with the intercepts of EFER: read, write (APM volume 2, "MSR
Intercepts": two bits for each MSR, those from C000_0000h on behind the first 2 KiB)."""


class HandOver:
    """The places, found once, on the first state."""

    def __init__(self, vm: Vm, places: Places, run: KernelRun, vmcb: Record) -> None:
        self._vm = vm
        self._places = places
        self._clear = _cleared_on_exit(vmcb)
        self.saved = self._saved_on_exit(run)
        """Words of vcpu->arch that svm_vcpu_run() writes on every #VMEXIT of a guest that is not encrypted."""
        self._exit_reason = self._spot("run.exit_reason", run)
        self._permission_map = memory.load(run, self._spot("svm.msrpm", run), 0, 64)
        self._flags = vm.address("task") + THREAD_FLAGS

    def _spot(self, place: str, run: KernelRun) -> int:
        spot = self._places.find(run, place)
        if spot is None:
            raise Unmodelled(f"this tree has no {place}")
        return spot.address

    def _saved_on_exit(self, run: KernelRun) -> tuple[int, ...]:
        if self._vm.encrypted:
            return ()
        rax, rsp, rip = (self._vm.layout.enumerator(f"VCPU_REGS_{name}") for name in ("RAX", "RSP", "RIP"))
        places = [f"regs[{rax}]", f"regs[{rsp}]", "rip" if rip is None else f"regs[{rip}]"]
        return tuple(self._spot(f"svm.vcpu.arch.{place}", run) for place in places)

    def forget(self, run: KernelRun, base: dict[int, int]) -> None:
        """At VMRUN: what the next #VMEXIT overwrites is as in the first state (`base`)."""
        for word, mask in self._clear:
            run.m[word] = run.m.get(word, 0) & ~mask
        for word in self.saved:
            run.m[word] = base.get(word, 0)

    def handle_signal(self, run: KernelRun) -> None:
        """On the way to userspace the kernel has the thread handle its signals."""
        run.m[self._flags] = run.m.get(self._flags, 0) & ~TIF_SIGPENDING

    def reason(self, run: KernelRun, result: Any) -> int:
        """Why KVM_RUN has returned: an errno, or exit_reason."""
        if isinstance(result, int) and result < 0:
            return result
        return memory.load(run, self._exit_reason, 0, 32)

    def host_area(self, run: KernelRun) -> Debug:
        """The debug registers in the host save area, which belongs to VMRUN of an encrypted guest."""
        if not self._vm.encrypted:
            return NO_HOST_DEBUG
        return saved_debug(run, self._vm.address("host_save_area"), self._vm.machine.member)

    def of_vmsa(self, run: KernelRun, member: str) -> int:
        """A member of the VMSA that the guest was launched with; 0 for a guest that has none."""
        spot = None if not self._vm.encrypted else self._places.find(run, f"svm.sev_es.vmsa->{member}")
        return 0 if spot is None else memory.load(run, spot.address, spot.bit, spot.width)

    def efer_passes(self, run: KernelRun) -> int:
        """The two bits of EFER in the MSR permission map."""
        return memory.load(run, self._permission_map + EFER_IN_MAP, 0, 2) ^ 3

    def saved_in_smram(self, run: KernelRun) -> tuple[int, int]:
        """RIP and RFLAGS in the guest's SMM state-save area."""
        area = self._vm.address("smram")
        return run.m.get(area + SMRAM_RIP, 0), run.m.get(area + SMRAM_RFLAGS, 0)


def _cleared_on_exit(vmcb: Record) -> list[tuple[int, int]]:
    """Words and bits of the VMCB that the CPU overwrites on every #VMEXIT."""
    names = Vmcb.field_names  # type: ignore[attr-defined]
    return [
        (word, mask << shift)
        for name, (word, shift, mask) in zip(names, vmcb.fields, strict=True)
        if name in WRITTEN_ON_EXIT
    ]
