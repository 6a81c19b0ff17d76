"""Doors: where the guest talks to its hypervisor there is no bare metal, only a contract.

The reference is then the machine under an ideal hypervisor. What has no contract here is not modelled.
"""

from __future__ import annotations

from iretrace.machine.cpu import Cpu, Machine
from iretrace.machine.ghcb import GHCB_MSR_AP_RESET_HOLD_REQ, SVM_VMGEXIT_AP_HLT_LOOP, SVM_VMGEXIT_NMI_COMPLETE
from iretrace.machine.reset_hold import begin_reset_hold
from iretrace.machine.vmcb import SVM_EXIT_CPUID, SVM_EXIT_WRITE_DR7


def answer_vmgexit(m: Machine, cpu: Cpu) -> bool:
    """What VMGEXIT with `cpu.door` means to the reference. False: there is no contract for it.

    NMI_COMPLETE opens the NMI gate, whether or not an NMI is in service: it need not be paired (GHCB specification,
    "NMI Complete"; arch/x86/kernel/nmi.c:exc_nmi). With virtual NMIs the gate is the processor's: IRET opens it, and
    NMI_COMPLETE, which the guest says all the same, changes nothing. CPUID changes nothing that is compared. A write of
    DR7 is only remembered by the guest's own handler. AP Reset Hold holds an application processor until a SIPI comes.
    """
    if cpu.door in (SVM_VMGEXIT_AP_HLT_LOOP, GHCB_MSR_AP_RESET_HOLD_REQ) and m.ap:
        begin_reset_hold(cpu)
        return True
    if cpu.door == SVM_VMGEXIT_NMI_COMPLETE:
        if m.iret_unmasks == 0:
            cpu.nmi_masked = 0
        return True
    return cpu.door in (SVM_EXIT_CPUID, SVM_EXIT_WRITE_DR7)
