"""What a SIPI is about in the tree's state: which processor the vCPU is, and where CS has it begin."""

from __future__ import annotations

from iretrace.linux import memory
from iretrace.linux.initial import Places, Spot
from iretrace.linux.run import Run
from iretrace.linux.unmodelled import Unmodelled

MSR_IA32_APICBASE_BSP = 1 << 8
"""Of the APIC base: this is the bootstrap processor (arch/x86/include/asm/msr-index.h)."""


class Startup:
    """The places, found once, on the first state."""

    def __init__(self, places: Places, run: memory.HasMemory) -> None:
        def spot(place: str) -> Spot:
            found = places.find(run, place)
            if found is None:
                raise Unmodelled(f"this tree has no {place}")
            return found

        self._bootstrap = spot("kvm.kvm.arch.bsp_vcpu_id")
        self._vcpu = spot("svm.vcpu.vcpu_id")
        self._apic_base = spot("svm.vcpu.arch.apic_base")
        self._received_first_sipi = places.find(run, "svm.sev_es.received_first_sipi")
        self._code_base = spot("svm.vmcb->save.cs.base")
        self._segment = {self._code_base.address & ~7, spot("svm.vmcb->save.cs.selector").address & ~7}

    def make_ap(self, run: Run) -> None:
        """The vCPU is not the bootstrap processor, which is another one. An encrypted guest's vCPU has been started by
        the SIPI that it does not tell from an end of AP reset hold."""
        _set(run, self._bootstrap, _get(run, self._vcpu) + 1)
        _set(run, self._apic_base, _get(run, self._apic_base) & ~MSR_IA32_APICBASE_BSP)
        if self._received_first_sipi is not None:
            _set(run, self._received_first_sipi, 1)

    def code_base(self, run: Run, base: dict[int, int]) -> int:
        """At VMRUN: the base of CS if it is not that of the first state (`base`), else 0. The guest gives CS the value
        that it has in 64-bit code, and the processor saves that on #VMEXIT; here the first state's stands for it."""
        now = _get(run, self._code_base)
        changed = any(run.m.get(word, 0) != base.get(word, 0) for word in self._segment)
        for word in self._segment:
            run.m[word] = base.get(word, 0)
        return now if changed else 0


def _get(run: Run, spot: Spot) -> int:
    return memory.load(run, spot.address, spot.bit, spot.width)


def _set(run: Run, spot: Spot, value: int) -> None:
    memory.store(run, spot.address, spot.bit, spot.width, value)
