"""The view of a state, asked of the tree's own functions; members by name, the newest name first."""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux import memory
from iretrace.linux.host import KernelRun
from iretrace.linux.initial import Places, Spot
from iretrace.machine.vmcb import EFER_SVME
from iretrace.world.protocol import View

PENDING = "kvm_get_nr_pending_nmis"
"""Linux 6.4 and later ask this how many NMIs wait, in KVM or, with virtual NMIs, in the VMCB."""

HF_IRET_MASK = 1 << 4
"""Before Linux 6.3, hflags say that the IRET was seen (arch/x86/include/asm/kvm_host.h)."""

MEMBERS: dict[str, tuple[tuple[str, int], ...]] = {
    "nmi_queued": (("svm.vcpu.arch.nmi_queued.counter", -1),),
    "nmi_pending": (("svm.vcpu.arch.nmi_pending", -1),),
    "nmi_injected": (("svm.vcpu.arch.nmi_injected", -1),),
    "awaiting_iret_completion": (("svm.awaiting_iret_completion", -1), ("svm.vcpu.arch.hflags", HF_IRET_MASK)),
    "nmi_singlestep": (("svm.nmi_singlestep", -1),),
    "int_state": (("svm.vmcb->control.int_state", -1),),
    "event_inj": (("svm.vmcb->control.event_inj", -1),),
    "requests": (("svm.vcpu.requests", -1),),
    "mp_state": (("svm.vcpu.arch.mp_state", -1),),
    "irr_pending": (("svm.vcpu.arch.apic->irr_pending", -1),),
    "dr6": (("svm.vcpu.arch.dr6", -1),),
    "irq_injected": (("svm.vcpu.arch.interrupt.injected", -1),),
    "exception_queued": (("svm.vcpu.arch.exception.pending", -1),),
    "exception_injected": (("svm.vcpu.arch.exception.injected", -1),),
    "guest_debug": (("svm.vcpu.guest_debug", -1),),
    "switch_db_regs": (("svm.vcpu.arch.switch_db_regs", -1),),
    "int_ctl": (("svm.vmcb->control.int_ctl", -1),),
    "svme": (("svm.vcpu.arch.efer", EFER_SVME),),
    "smi_pending": (("svm.vcpu.arch.smi_pending", -1),),
    "pending_events": (("svm.vcpu.arch.apic->pending_events", -1),),
}
"""Field of the view -> places that may hold it, and the bits that count."""

MASKS = ("svm.nmi_masked", "svm.vcpu.arch.hflags")
"""Where trees keep the NMI mask; its value is asked of svm_get_nmi_mask()."""

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_HALTED = 3
SVM_INTERRUPT_SHADOW_MASK = 1
DR6_RESET = 0xFFFF_0FF0
KVM_APIC_INIT_PENDING = 1
APIC_IRR = 0x200
IRR_SIZE = 0x80
"""The IRR in the local APIC's registers (arch/x86/include/asm/apicdef.h)."""


class Viewer:
    """Reads views. places are resolved once, on the first state."""

    def __init__(self, places: Places, run: KernelRun, svm: int, counts: bool) -> None:
        """counts: the tree has a function that counts NMIs that wait."""
        self._svm = svm
        self._counts = counts
        vcpu, page = places.find(run, "svm.vcpu"), places.find(run, "svm.vcpu.arch.apic->regs")
        assert vcpu is not None and page is not None
        self._vcpu = vcpu.address
        irr = memory.load(run, page.address, page.bit, 64) + APIC_IRR
        self._irr = range(irr, irr + IRR_SIZE, 8)
        self._members: dict[str, tuple[Spot, int]] = {}
        masks = (places.find(run, place) for place in MASKS)
        self._masks = [(spot, -1) for spot in masks if spot is not None]
        for name, candidates in MEMBERS.items():
            for place, mask in candidates:
                spot = places.find(run, place)
                if spot is not None:
                    self._members[name] = spot, mask
                    break

    def words(self) -> frozenset[int]:
        """The memory words that the view looks at."""
        return frozenset(spot.address & ~7 for spot, _ in (*self._members.values(), *self._masks)).union(self._irr)

    def _get(self, run: KernelRun, name: str) -> int:
        if name not in self._members:
            return 0
        spot, mask = self._members[name]
        return memory.load(run, spot.address, spot.bit, spot.width) & mask

    def view(self, make: Callable[[], KernelRun]) -> View:
        """The view of a state; `make` makes a run on a copy of its memory."""
        run = make()
        masked = run.call("svm_get_nmi_mask", self._svm)
        gif = run.call("gif_set", self._svm)
        get = self._get
        mp_state = get(run, "mp_state")
        return View(
            nmi_queued=get(run, "nmi_queued"),
            nmi_pending=run.call(PENDING, self._vcpu) if self._counts else get(run, "nmi_pending"),
            nmi_injected=int(get(run, "nmi_injected") != 0),
            nmi_masked=int(masked != 0),
            awaiting_iret_completion=int(get(run, "awaiting_iret_completion") != 0),
            nmi_singlestep=int(get(run, "nmi_singlestep") != 0),
            int_shadow=get(run, "int_state") & SVM_INTERRUPT_SHADOW_MASK,
            gif=int(gif != 0),
            event_inj=get(run, "event_inj"),
            requests=get(run, "requests").bit_count(),
            irq_pending=int(run.call("kvm_lapic_find_highest_irr", self._vcpu) >= 0),
            irq_injected=int(get(run, "irq_injected") != 0),
            exception_pending=int(get(run, "exception_queued") != 0 or get(run, "exception_injected") != 0),
            dr6_active=get(run, "dr6") ^ DR6_RESET,
            guest_debug=get(run, "guest_debug"),
            switch_db_regs=get(run, "switch_db_regs"),
            svme=int(get(run, "svme") != 0),
            smi_pending=int(get(run, "smi_pending") != 0),
            smm=int(run.call("is_smm", self._vcpu) != 0),
            init_pending=get(run, "pending_events") & KVM_APIC_INIT_PENDING,
            mp_state={KVM_MP_STATE_RUNNABLE: 0, KVM_MP_STATE_HALTED: 1}.get(mp_state, 2),
        )
