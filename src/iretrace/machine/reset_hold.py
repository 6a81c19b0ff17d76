"""AP reset hold: an encrypted guest's application processor asks to be held until a SIPI comes.

No processor alone has this: its reference is the machine under a hypervisor that does what the GHCB specification
says. An INIT cannot reset what is encrypted, so that behind the SIPI the guest goes on where it has asked.
"""

from __future__ import annotations

from iretrace.machine.cpu import KNOB_INIT_WAITS_FOR_RESET_HOLD, Cpu, Machine, knob
from iretrace.machine.ghcb import (
    GHCB_MSR_AP_RESET_HOLD_REQ,
    GHCB_MSR_AP_RESET_HOLD_RESP,
    GHCB_MSR_AP_RESET_HOLD_RESULT_POS,
    GHCB_MSR_INFO_MASK,
    VALID_SW_EXIT_INFO_2_HI,
    Ghcb,
)
from iretrace.machine.stack import retire
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import rule, u32, wrap16

HELD = 1
"""RIP is behind the VMGEXIT, which has not been answered."""
ASKS_AGAIN = 2
"""It was answered, not because of a SIPI, and RIP is at the VMGEXIT again."""


@rule("GHCB specification", "AP Reset Hold; Linux arch/x86/kvm/svm/sev.c: SVM_VMGEXIT_AP_HLT_LOOP", "read")
def begin_reset_hold(cpu: Cpu) -> None:
    """The processor is held: it executes nothing until a SIPI comes. An NMI is taken all the same, behind the
    VMGEXIT."""
    cpu.held = HELD


@rule("GHCB specification", "AP Reset Hold: SW_EXITINFO2 0", "read")
def move_in_reset_hold(cpu: Cpu) -> None:
    """The hold may be ended without a SIPI at any time, and the guest goes back to ask for it again. To who sends an
    INIT that is one hold; but an NMI can show where the guest is."""
    if cpu.held == HELD:
        cpu.held = ASKS_AGAIN
        cpu.rip = wrap16(cpu.rip - 1)
    else:
        cpu.held = HELD
        cpu.rip = wrap16(cpu.rip + 1)


@rule("Linux", "arch/x86/coco/sev/core.c:sev_es_ap_hlt_loop", "read")
def look_at_reset_hold(cpu: Cpu, vmcb: Vmcb, ghcb: Ghcb, request: u32) -> None:
    """The guest's loop around the VMGEXIT: if SW_EXITINFO2 is 0, or not marked as valid, something other than a SIPI
    has ended the hold, and the guest asks for it again. On the machine alone it just goes on being held."""
    if cpu.guest_mode == 0:
        if cpu.started == 0:
            cpu.held = HELD
            return
        cpu.started = 0
        retire(cpu, wrap16(cpu.rip + 1))
    elif told_of_sipi(vmcb, ghcb, request):
        retire(cpu, wrap16(cpu.rip + 1))
    else:
        retire(cpu, wrap16(cpu.rip - 1))


@rule("GHCB specification", "AP Reset Hold; GHCB MSR Protocol: AP Reset Hold Response", "read")
def told_of_sipi(vmcb: Vmcb, ghcb: Ghcb, request: u32) -> bool:
    """The answer says that a SIPI has come: SW_EXITINFO2, or to a request by the MSR the value of the response."""
    if request == GHCB_MSR_AP_RESET_HOLD_REQ:
        answered: bool = vmcb.ghcb_gpa & GHCB_MSR_INFO_MASK == GHCB_MSR_AP_RESET_HOLD_RESP
        return answered and vmcb.ghcb_gpa >> GHCB_MSR_AP_RESET_HOLD_RESULT_POS != 0
    return ghcb.valid_bitmap_hi & VALID_SW_EXIT_INFO_2_HI != 0 and ghcb.sw_exit_info_2 != 0


@rule("GHCB specification", "AP Reset Hold", "derived")
def held_for_init(m: Machine, cpu: Cpu) -> bool:
    """An INIT to an encrypted guest can be carried out only in AP reset hold."""
    return not m.sev_es or cpu.held != 0


def settle_in_reset_hold(cpu: Cpu) -> None:
    """A guest that is about to ask again has done so."""
    if cpu.held == ASKS_AGAIN:
        move_in_reset_hold(cpu)


@rule("GHCB specification", "AP Reset Hold", "read")
def end_reset_hold(cpu: Cpu) -> None:
    """A SIPI ends the hold, and SW_EXITINFO2 says so. One that finds the guest stopped elsewhere just has it go on."""
    if cpu.held != 0:
        cpu.held = 0
        cpu.started = 1


@rule("GHCB specification", "AP Reset Hold: an INIT at any other time", "derived")
def init_may_stray(m: Machine, cpu: Cpu) -> bool:
    """What becomes of an INIT that finds an encrypted guest elsewhere, in a handler that has taken it out of the hold,
    the specification leaves open (knob): it waits for the hold to go on, or it may be lost, or stop the guest where
    it is."""
    if not m.sev_es or cpu.init_latched == 0 or cpu.held != 0 or cpu.waits_for_sipi != 0:
        return False
    return not knob(m, KNOB_INIT_WAITS_FOR_RESET_HOLD)


@rule("GHCB specification", "AP Reset Hold: an INIT at any other time", "derived")
def lose_init(cpu: Cpu) -> None:
    """The INIT does nothing, and neither does the SIPI behind it."""
    cpu.init_latched = 0
    cpu.sipi_latched = 0


@rule("GHCB specification", "AP Reset Hold: an INIT at any other time", "derived")
def stop_for_init(cpu: Cpu) -> None:
    """The INIT stops the guest where it is, until a SIPI comes."""
    cpu.init_latched = 0
    cpu.waits_for_sipi = 1
