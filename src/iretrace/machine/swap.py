"""The debug registers that VMRUN and #VMEXIT do not carry in the VMCB: who finds which value in the physical CPU."""

from __future__ import annotations

from iretrace.machine.cpu import DR7_RESET, Cpu, Machine
from iretrace.machine.vmcb import LBR_CTL_ENABLE_MASK, Vmcb
from iretrace.subset import record, rule, u32, u64


@record
class DebugState:
    """DR0-3, their address masks, DR7, DR6 and DEBUGCTL, of the physical CPU or of a save area."""

    dr0: u64
    dr1: u64
    dr2: u64
    dr3: u64
    mask0: u32
    mask1: u32
    mask2: u32
    mask3: u32
    dr7: u32
    dr6: u32
    debugctl: u32


@rule("Linux", "arch/x86/kvm/svm/svm.c:svm_vcpu_run: DEBUGCTL is switched by hand if LBR virtualization is disabled")
def lbr_virtualized(vmcb: Vmcb) -> bool:
    """VMRUN loads DEBUGCTL from the VMCB, where guests of this model have 0, and #VMEXIT loads the host's again."""
    return vmcb.virt_ext & LBR_CTL_ENABLE_MASK != 0


@rule("Linux", "arch/x86/kvm/svm/sev.c:sev_es_prepare_switch_to_guest: swap types", "read")
def swap_in(cpu: Cpu, physical: DebugState, switched: bool) -> None:
    """VMRUN leaves DR0-3 as they are, so that the guest has what the hypervisor loaded. With DebugSwap they are of swap
    type B: the guest's come from its VMSA, and nobody saves the host's. DEBUGCTL stays, too, unless it is switched."""
    cpu.debugctl = 0 if switched else physical.debugctl
    if cpu.debug_swap:
        return
    cpu.dr0 = physical.dr0
    cpu.dr1 = physical.dr1
    cpu.dr2 = physical.dr2
    cpu.dr3 = physical.dr3


@rule("AMD64 APM vol. 2", "#VMEXIT: DR7 disables all host breakpoints; Encrypted State: swap types", "derived")
def swap_out(m: Machine, cpu: Cpu, physical: DebugState, area: DebugState, switched: bool) -> None:
    """#VMEXIT leaves the guest's DR0-3, DR6 and DEBUGCTL in the processor. With DebugSwap it loads DR0-3 and their
    masks from the host save area, whatever is there. DR7 is off. SEV-ES has DR6 and DR7 of swap type A: the host's."""
    if not switched:
        physical.debugctl = cpu.debugctl
    cpu.debugctl = 0
    if m.sev_es == 0:
        physical.dr6 = cpu.dr6
        physical.dr7 = DR7_RESET
    if cpu.debug_swap:
        take(physical, area)
        return
    physical.dr0 = cpu.dr0
    physical.dr1 = cpu.dr1
    physical.dr2 = cpu.dr2
    physical.dr3 = cpu.dr3
    cpu.dr0 = 0
    cpu.dr1 = 0
    cpu.dr2 = 0
    cpu.dr3 = 0


def take(physical: DebugState, area: DebugState) -> None:
    """DR0-3 and the masks as a save area has them."""
    physical.dr0 = area.dr0
    physical.dr1 = area.dr1
    physical.dr2 = area.dr2
    physical.dr3 = area.dr3
    physical.mask0 = area.mask0
    physical.mask1 = area.mask1
    physical.mask2 = area.mask2
    physical.mask3 = area.mask3
