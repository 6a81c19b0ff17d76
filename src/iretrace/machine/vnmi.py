"""Virtual NMIs (vNMI): a guest with a latch and a mask of its own, in int_ctl of its VMCB while it does not run.

While it runs they are Cpu.nmi_latched and Cpu.nmi_masked, as on the machine alone: the rules of NMIs hold for both.
"""

from __future__ import annotations

from iretrace.machine.cpu import KNOB_CUT_OFF_INJECTION_MASKS, Cpu, Machine, knob
from iretrace.machine.vmcb import (
    SVM_EVTINJ_TYPE_MASK,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    V_NMI_BLOCKING_MASK,
    V_NMI_ENABLE_MASK,
    V_NMI_PENDING_MASK,
    Vmcb,
)
from iretrace.subset import rule, u32


def vnmi_enabled(vmcb: Vmcb) -> bool:
    """The guest of this VMCB has virtual NMIs."""
    return vmcb.int_ctl & V_NMI_ENABLE_MASK != 0


def is_nmi(event: u32) -> bool:
    """Whether EVENTINJ or EXITINTINFO holds an NMI."""
    return event & (SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_MASK) == SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI


@rule("AMD64 APM vol. 2", "NMI Virtualization", "read")
def load_virtual_nmi(cpu: Cpu, vmcb: Vmcb) -> None:
    """VMRUN loads V_NMI and V_NMI_MASK. What happens to the VMCB's until #VMEXIT writes them back has no effect, so
    that they are cleared here."""
    if not vnmi_enabled(vmcb):
        return
    cpu.nmi_latched = 1 if vmcb.int_ctl & V_NMI_PENDING_MASK != 0 else 0
    cpu.nmi_masked = 1 if vmcb.int_ctl & V_NMI_BLOCKING_MASK != 0 else 0
    vmcb.int_ctl = vmcb.int_ctl & ~(V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK)


@rule("AMD64 APM vol. 2", "NMI Virtualization", "read")
def save_virtual_nmi(cpu: Cpu, vmcb: Vmcb) -> None:
    """#VMEXIT writes V_NMI and V_NMI_MASK back. The latch and the mask of the host are others."""
    if not vnmi_enabled(vmcb):
        return
    pending: u32 = V_NMI_PENDING_MASK if cpu.nmi_latched else 0
    blocking: u32 = V_NMI_BLOCKING_MASK if cpu.nmi_masked else 0
    vmcb.int_ctl = vmcb.int_ctl & ~(V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK) | pending | blocking
    cpu.nmi_latched = 0
    cpu.nmi_masked = 0


@rule("AMD64 APM vol. 2", "NMI Virtualization: Event Injection", "read")
def mask_for_injected_nmi(cpu: Cpu, vmcb: Vmcb) -> None:
    """An NMI that is injected into a guest with virtual NMIs masks them; into another guest it masks nothing."""
    if vnmi_enabled(vmcb):
        cpu.nmi_masked = 1


@rule("AMD64 APM vol. 2", "NMI Virtualization: #VMEXIT while a virtual NMI is delivered", "read")
def unmask_if_cut_off(cpu: Cpu, event: u32) -> None:
    """An exit that cuts the delivery of an NMI off saves V_NMI_MASK as 0: the NMI, now in EXITINTINFO, is not in
    service. It has to be injected again, which masks again."""
    if is_nmi(event):
        cpu.nmi_masked = 0


@rule("AMD64 APM vol. 2", "NMI Virtualization: silent about an injected NMI whose delivery is cut off", "derived")
def mask_of_cut_off_injection(m: Machine, cpu: Cpu, vmcb: Vmcb) -> None:
    """Whether V_NMI_MASK is saved as 0, too, where EVENTINJ had set it, or as 1, is not known (knob)."""
    if cpu.guest_mode or not vnmi_enabled(vmcb) or not is_nmi(vmcb.exit_int_info):
        return
    if knob(m, KNOB_CUT_OFF_INJECTION_MASKS):
        vmcb.int_ctl |= V_NMI_BLOCKING_MASK
