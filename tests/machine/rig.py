"""A processor on the bench: a short program, its handlers, and the machine's steps, on bare metal or in a guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iretrace.machine.boundary import bare_step, guest_step, latch_nmi
from iretrace.machine.cpu import (
    BP_VECTOR,
    CODE_SIZE,
    DB_VECTOR,
    DR6_RESET,
    DR7_RESET,
    KERNEL_CS,
    KERNEL_DS,
    MEMORY_WORDS,
    NMI_VECTOR,
    OP_IRETQ,
    OP_NOP,
    SEEN_DELIVERY,
    STACK_WORDS,
    VECTORS,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
    Cpu,
    Machine,
)
from iretrace.machine.delivery import FAULT, INTR, NMI, TRAP, deliver
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.svm import save_guest_state, vmrun
from iretrace.machine.vectors import IRQ_VECTOR
from iretrace.machine.vmcb import (
    EFER_SVME,
    INTERCEPT_INTR,
    INTERCEPT_SHUTDOWN,
    SVM_EVTINJ_TYPE_NMI,
    SVM_EVTINJ_VALID,
    SVM_INTERRUPT_SHADOW_MASK,
    V_INTR_MASKING_MASK,
    Vmcb,
)

INJECT_NMI = SVM_EVTINJ_VALID | SVM_EVTINJ_TYPE_NMI | NMI_VECTOR
Handlers = Mapping[int, Sequence[int | tuple[int, int]]]
DB: Handlers = {DB_VECTOR: [OP_IRETQ]}
"""#DB returns at once."""
MAIN = 0
HANDLER = 16
"""Where handlers start: that of vector v at HANDLER + v of Rig.handlers' order, see `rig`."""


@dataclass
class Rig:
    """Machine, processor, VMCB and GHCB."""

    m: Machine
    cpu: Cpu
    vmcb: Vmcb
    ghcb: Ghcb = field(default_factory=Ghcb)

    def bare(self, steps: int = 1) -> Rig:
        """Steps of the machine alone."""
        for _ in range(steps):
            bare_step(self.m, self.cpu, self.vmcb, self.ghcb)
        return self

    def guest(self, steps: int = 1) -> Rig:
        """Steps of the guest; it must be in guest mode."""
        for _ in range(steps):
            assert self.cpu.guest_mode
            guest_step(self.m, self.cpu, self.vmcb, self.ghcb)
        return self

    def enter(self, event: int = 0, error: int = 0, shadow: bool = False) -> Rig:
        """VMRUN with the processor's registers in the VMCB, which must succeed."""
        if not self.m.sev_es:
            save_guest_state(self.cpu, self.vmcb)
            self.vmcb.efer |= EFER_SVME  # as every hypervisor has it
        self.vmcb.event_inj, self.vmcb.event_inj_err = event, error
        self.vmcb.int_state = SVM_INTERRUPT_SHADOW_MASK if shadow else 0
        vmrun(self.m, self.cpu, self.vmcb)
        assert self.cpu.guest_mode
        return self

    def nmi(self) -> Rig:
        """An NMI arrives at the processor."""
        latch_nmi(self.cpu)
        return self

    def deliver(self, vector: int, error: int = 0) -> Rig:
        """An event of the kind that the vector is for, between two instructions."""
        kinds = {NMI_VECTOR: NMI, DB_VECTOR: TRAP, BP_VECTOR: TRAP, IRQ_VECTOR: INTR}
        deliver(self.m, self.cpu, self.vmcb, kinds.get(vector, FAULT), vector, error, self.cpu.rip)
        return self

    def delivered(self) -> int:
        """The vector that the last step delivered, as the guest sees it; -1 for none."""
        return self.cpu.seen_vector if self.cpu.seen == SEEN_DELIVERY else -1

    def frame(self) -> list[int]:
        """RIP, CS, RFLAGS, RSP, SS at the stack pointer, as IRETQ would pop them."""
        return self.cpu.memory[self.cpu.rsp : self.cpu.rsp + 5]

    def frame_behind_the_error_code(self) -> list[int]:
        """The same in a handler that has an error code on its stack."""
        return self.cpu.memory[self.cpu.rsp + 1 : self.cpu.rsp + 6]


def rig(
    *main: int | tuple[int, int],
    handlers: Handlers | None = None,
    ist: Mapping[int, int] | None = None,
    sev_es: bool = False,
    knobs: int = 0,
    intercepts: tuple[int, ...] = (),
    interrupts: bool = False,
    cold: int = 0,
    nested_data_bp: int = 1,
    lstar: int = 0,
    cold_code: int = 0,
) -> Rig:
    """A bench with main's instructions at 0, and the handlers' one after the other from HANDLER on.

    An instruction is an opcode or (opcode, argument). The VMCB passes VMRUN's checks and intercepts INTR and shutdown.
    """
    ops, args = [OP_NOP] * CODE_SIZE, [0] * CODE_SIZE
    put(ops, args, MAIN, main)
    idt, stacks = [0] * VECTORS, [0] * VECTORS
    at = HANDLER
    for vector, code in (handlers or {}).items():
        idt[vector] = at + 1
        put(ops, args, at, code)
        at += len(code)
    for vector, page in (ist or {}).items():
        stacks[vector] = page
    places = (idt, stacks, lstar, cold_code)
    machine = Machine(ops, args, [0] * CODE_SIZE, *places, int(sev_es), nested_data_bp, int(not sev_es), knobs, 0)
    on = Rig(machine, cpu(interrupts, cold), vmcb(intercepts, sev_es))
    if sev_es:
        on.cpu.efer |= EFER_SVME  # as when its state was encrypted
    return on


def watching(dr7: int, *addresses: int, main: tuple[int | tuple[int, int], ...] = (OP_NOP,), **how: object) -> Rig:
    """A bench whose breakpoints are set, with a handler of #DB."""
    on = rig(*main, **{"handlers": DB, **how})  # type: ignore[arg-type]
    for number, address in enumerate(addresses):
        setattr(on.cpu, f"dr{number}", address)
    on.cpu.dr7 = DR7_RESET | dr7
    return on


def put(ops: list[int], args: list[int], at: int, code: Sequence[int | tuple[int, int]]) -> None:
    """Put instructions into a machine's code."""
    for n, instruction in enumerate(code):
        ops[at + n], args[at + n] = instruction if isinstance(instruction, tuple) else (instruction, 0)


def cpu(interrupts: bool = False, cold: int = 0) -> Cpu:
    """A processor at the start of main, with an empty main stack."""
    rflags = X86_EFLAGS_FIXED | (X86_EFLAGS_IF if interrupts else 0)
    return Cpu(
        rip=MAIN,
        rsp=STACK_WORDS,
        rflags=rflags,
        cpl=0,
        ss=KERNEL_DS,
        rax=0,
        rcx=0,
        r11=0,
        dr0=0,
        dr1=0,
        dr2=0,
        dr3=0,
        dr6=DR6_RESET,
        dr7=DR7_RESET,
        shadow_dr7=DR7_RESET,
        debugctl=0,
        debug_swap=0,
        trap=0,
        shadow=0,
        halted=0,
        shutdown=0,
        nmi_latched=0,
        nmi_masked=0,
        irr=0,
        isr=0,
        intr_pending=0,
        guest_mode=0,
        event_inj=0,
        event_inj_err=0,
        cold=cold,
        door=0,
        read_dr6=0,
        seen=0,
        seen_vector=0,
        seen_rip=0,
        seen_rflags=0,
        seen_error=0,
        memory=[0] * MEMORY_WORDS,
    )


def vmcb(intercepts: tuple[int, ...] = (), sev_es: bool = False) -> Vmcb:
    """A VMCB that VMRUN accepts."""
    made = Vmcb(intercept_word4=1, asid=1, int_ctl=V_INTR_MASKING_MASK)
    for number in (INTERCEPT_INTR, INTERCEPT_SHUTDOWN, *intercepts):
        made.intercept_word3 |= 1 << number - 96
    if sev_es:
        made.nested_ctl, made.vmsa_pa = 5, 0x1000
    else:
        made.efer, made.dr6, made.dr7 = EFER_SVME, DR6_RESET, 0x400
    return made


def push_words(on: Rig, *words: int) -> None:
    """Put words on the stack, the last pushed first: as a frame lies in memory."""
    on.cpu.rsp -= len(words)
    on.cpu.memory[on.cpu.rsp : on.cpu.rsp + len(words)] = words


def return_frame(rip: int, rflags: int = X86_EFLAGS_FIXED, rsp: int = STACK_WORDS) -> tuple[int, int, int, int, int]:
    """What IRETQ pops to go there."""
    return (rip, KERNEL_CS, rflags, rsp, KERNEL_DS)
