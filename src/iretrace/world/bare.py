"""The machine alone, state by state: what it can do from each, worked out once, and how it goes on for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from iretrace.explore.interned import Interned
from iretrace.explore.monitor import Observation
from iretrace.litmus.test import Test
from iretrace.machine.boundary import (
    irq_due,
    latch_irq,
    latch_nmi,
    next_instruction,
    take_debug_trap,
    take_irq,
    take_nmi,
)
from iretrace.machine.cpu import (
    CODE_SIZE,
    DR6_B_MASK,
    DR6_BS,
    DR7_ENABLE,
    EFER_BOOTED,
    KNOB_STEP_CLEARS_B,
    OP_FROM_DR,
    OP_HLT,
    OP_PAUSE,
    OP_SPIN,
    OP_VMGEXIT,
    OP_WRMSR,
    SEEN_NOTHING,
    SHADOW_NONE,
    X86_EFLAGS_TF,
    Cpu,
    Machine,
    see_nothing,
    see_smi,
)
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.reset_hold import ASKS_AGAIN, init_may_stray, lose_init, move_in_reset_hold, stop_for_init
from iretrace.machine.smm import (
    init_due,
    latch_init,
    latch_sipi,
    latch_smi,
    sipi_due,
    smi_due,
    take_init,
    take_sipi,
    take_sipi_alone,
    take_smi,
)
from iretrace.machine.vmcb import EFER_SVME, SVM_EXIT_VMRUN, Vmcb
from iretrace.subset import pack, unpack
from iretrace.world.doors import answer_vmgexit
from iretrace.world.guest import make_cpu, make_machine
from iretrace.world.protocol import Processor

Move = tuple[Observation | None, int]
"""(what it shows, the Cpu after it)."""

EFER_MODELLED = EFER_BOOTED | EFER_SVME
"""Bits of EFER that guests may write."""

AUTOMATIC_EXITS = (OP_VMGEXIT, OP_HLT, OP_PAUSE)
"""Instructions of SEV-ES guests that always exit, or may, when they are done."""

Take = Callable[[Machine, Cpu, Vmcb], None]
"""A rule by which an event is taken."""


def observation(cpu: Cpu) -> Observation | None:
    """What the last step showed to the guest, in the form that both sides are compared in."""
    if cpu.seen == SEEN_NOTHING:
        return None
    return (cpu.seen, cpu.seen_vector, cpu.seen_rip, cpu.seen_rflags, cpu.seen_error)


def forget_seen(cpu: Cpu) -> None:
    """What was shown is in the history; it is no part of a state."""
    see_nothing(cpu)


WAITS_FOR_SIPI = "waits for a SIPI"
"""The ending of an application processor that has taken an INIT, or is in AP reset hold."""


def ending_of(machine: Machine, cpu: Cpu) -> str:
    """How a processor that stays as it is goes on for ever; "" if it does not."""
    if cpu.shutdown:
        return "shutdown"
    if cpu.waits_for_sipi or cpu.held:
        return WAITS_FOR_SIPI
    if cpu.halted:
        return f"halted at {cpu.rip}"
    if cpu.rip < CODE_SIZE and machine.ops[cpu.rip] == OP_SPIN:
        return f"spins at {cpu.rip}"
    return ""


def loops_through(rips: Iterable[int]) -> str:
    """The ending of a run that executes these instructions again and again."""
    return "loops through " + ", ".join(str(rip) for rip in sorted(set(rips)))


HELD = "held in delivery"
"""The ending of a processor that delivers one exception after the other."""


@dataclass(slots=True)
class Known:
    """What one Cpu can do, worked out once."""

    rip: int
    trap: bool
    """#DB is due, which comes before all that arrives from outside."""
    ending: str
    room: bool
    """An NMI can be latched: the latch is empty, or blocked and so merges."""
    due: bool
    """An NMI is latched that nothing but a shadow holds: it may be taken, and is owed."""
    irq_owed: bool
    """The interrupt waits, and nothing but a shadow holds it."""
    nmi_latched: int
    """The Cpu with its NMI latched."""
    irq_latched: int
    """The Cpu with its interrupt latched."""
    taken: Move | None
    """Taking the latched NMI, if it is due and no trap comes first."""
    irq_taken: Move | None
    """Taking the interrupt, if nothing holds it and no trap comes first."""
    higher: tuple[int, int, int] | None
    """The Cpu with an SMI, with an INIT, and with a SIPI latched; None in a test that has none."""
    higher_owed: bool
    """An SMI or an INIT is latched that nothing but a shadow holds: it goes before NMI and interrupt, and is owed."""
    smi_taken: Move | None
    """Taking the SMI, if no trap comes first."""
    init_taken: Move | None
    """Taking the INIT, if no trap comes first. Which of the two goes first is not documented."""
    init_strays: tuple[Move, ...]
    """What else may become of an INIT that finds an encrypted guest elsewhere than in AP reset hold."""
    held_at: int
    """Where the guest is held in AP reset hold, or -1."""
    sipi_taken: tuple[Move, ...]
    """Taking the SIPI. An NMI and an SMI that came while the processor waited for it have been held. Whether an NMI is
    held or lost that came in AP reset hold is not documented, so that it may be either each time."""
    smi: Observation
    """The SMI by which it got into SMM, if it is there."""
    waits: bool
    """An NMI whose sender is done can go on waiting behind the latched one while instructions retire."""
    executed: Move | None
    """Taking the trap of the instruction before, or executing the next instruction, unless halted or shut down."""
    executed_otherwise: Move | None
    """The same, where a rule leaves the processor a choice that matters: whether a single step clears DR6.B0-B3."""


class Bare:
    """The processor of a test without a hypervisor. Its states are Cpus by number."""

    def __init__(self, test: Test, vcpu: str, knobs: int, processor: Processor) -> None:
        self.machine = make_machine(test, vcpu, knobs & ~(1 << KNOB_STEP_CLEARS_B), processor)
        self._host_breakpoints = processor.host_debug.dr7 & DR7_ENABLE != 0
        self.has_smm = test.smi >= 0
        self.has_higher = self.has_smm or any(arrival.kind in ("init", "sipi") for arrival in test.outside)
        self._cpus: Interned[tuple[object, ...]] = Interned()
        self._known: dict[int, Known] = {}
        cpu = make_cpu(test, vcpu)
        cpu.cold = 0  # no nested paging on bare metal
        cpu.debug_swap = int(vcpu == "sev-es-debugswap")
        self.first = self._cpus(pack(cpu))
        """As main begins."""
        self._vmcb = Vmcb()
        self._ghcb = Ghcb()
        self.without_contract = ""
        """Not empty: the guest did something that has no contract; the verdict is undetermined."""
        self.runs_guest = False
        """The machine alone would enter a guest of its own. How that goes on has no contract."""

    def cpu(self, number: int) -> Cpu:
        """A copy of a Cpu."""
        return unpack(Cpu, self._cpus.values[number])

    def is_held_in_delivery(self, number: int) -> bool:
        """One #DB after the other, and no instruction between them."""
        met: set[int] = set()
        while self.known(number).trap:
            if number in met:
                return True
            met.add(number)
            move = self.known(number).executed
            assert move is not None
            number = move[1]
        return False

    def known(self, number: int) -> Known:
        """What a Cpu can do."""
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._work_out(self._cpus.values[number])
        return known

    def _work_out(self, packed: tuple[object, ...]) -> Known:
        cpu = unpack(Cpu, packed)
        blocked = cpu.nmi_masked or cpu.gif == 0 or cpu.shadow != SHADOW_NONE or cpu.waits_for_sipi
        interruptible = not cpu.trap and not cpu.shutdown
        due = bool(cpu.nmi_latched and cpu.gif and not (cpu.nmi_masked or cpu.waits_for_sipi or cpu.shutdown))
        nmi_latched, irq_latched, unshadowed = unpack(Cpu, packed), unpack(Cpu, packed), unpack(Cpu, packed)
        latch_nmi(nmi_latched)
        latch_irq(irq_latched)
        unshadowed.shadow = SHADOW_NONE
        return Known(
            rip=cpu.rip,
            trap=cpu.trap != 0,
            ending=self._ending(cpu),
            room=bool(blocked or not cpu.nmi_latched),
            due=due,
            irq_owed=irq_due(unshadowed) and not cpu.shutdown,
            nmi_latched=self._cpus(pack(nmi_latched)),
            irq_latched=self._cpus(pack(irq_latched)),
            higher=self._latched_higher(packed) if self.has_higher else None,
            higher_owed=(smi_due(cpu) or init_due(self.machine, cpu) or sipi_due(cpu)) and not cpu.shutdown,
            smi_taken=self._do(take_smi, packed) if smi_due(cpu) and interruptible else None,
            init_taken=self._do(take_init, packed) if init_due(self.machine, cpu) and interruptible else None,
            init_strays=self._init_strays(packed, cpu),
            held_at=cpu.rip + (cpu.held == ASKS_AGAIN) if cpu.held else -1,
            sipi_taken=self._sipi_taken(packed, cpu),
            smi=self._smi_of(cpu),
            waits=due or bool(cpu.smm and cpu.nmi_latched and not cpu.smm_nmi_masked),
            taken=self._do(take_nmi, packed) if due and interruptible else None,
            irq_taken=self._do(take_irq, packed) if irq_due(cpu) and interruptible else None,
            executed=self._go_on(packed, cpu),
            executed_otherwise=self._go_on_otherwise(packed, cpu),
        )

    def _init_strays(self, packed: tuple[object, ...], cpu: Cpu) -> tuple[Move, ...]:
        if not init_may_stray(self.machine, cpu):
            return ()
        lost, stopped = unpack(Cpu, packed), unpack(Cpu, packed)
        lose_init(lost)
        stop_for_init(stopped)
        return self._after(lost), self._after(stopped)

    def _sipi_taken(self, packed: tuple[object, ...], cpu: Cpu) -> tuple[Move, ...]:
        """Taking the SIPI, each way that there is."""
        ways = (take_sipi, take_sipi_alone) if self.machine.sev_es else (take_sipi,)
        return tuple(self._do(take, packed) for take in ways) if sipi_due(cpu) else ()

    def _latched_higher(self, packed: tuple[object, ...]) -> tuple[int, int, int]:
        """The Cpu with its SMI, with its INIT, and with a SIPI latched."""
        smi, init, sipi = unpack(Cpu, packed), unpack(Cpu, packed), unpack(Cpu, packed)
        latch_smi(smi)
        latch_init(init)
        latch_sipi(self.machine, sipi)
        return self._cpus(pack(smi)), self._cpus(pack(init)), self._cpus(pack(sipi))

    def _smi_of(self, cpu: Cpu) -> Observation:
        """What the SMI that has led here shows: what SMRAM says."""
        see_nothing(cpu)
        see_smi(cpu, cpu.smm_rip, cpu.smm_rflags)
        shown = observation(cpu)
        forget_seen(cpu)
        return shown

    def _ending(self, cpu: Cpu) -> str:
        """How a processor goes on that stays as it is. Single-stepped none does."""
        if cpu.trap or (cpu.rflags & X86_EFLAGS_TF and not cpu.halted and not cpu.shutdown):
            return ""
        return ending_of(self.machine, cpu)

    def _go_on(self, packed: tuple[object, ...], cpu: Cpu) -> Move | None:
        """What the guest itself causes."""
        if cpu.shutdown:
            return None
        if cpu.trap:
            return self._do(take_debug_trap, packed)
        if cpu.held and not cpu.waits_for_sipi:
            move_in_reset_hold(cpu)
            return self._after(cpu)
        return None if cpu.halted or cpu.waits_for_sipi else self._execute(cpu)

    def _go_on_otherwise(self, packed: tuple[object, ...], cpu: Cpu) -> Move | None:
        """A single step clears DR6.B0-B3."""
        if cpu.shutdown or cpu.trap != DR6_BS or cpu.dr6 & DR6_B_MASK == 0:
            return None
        self.machine.knobs |= 1 << KNOB_STEP_CLEARS_B
        move = self._do(take_debug_trap, packed)
        self.machine.knobs &= ~(1 << KNOB_STEP_CLEARS_B)
        self.machine.consulted &= ~(1 << KNOB_STEP_CLEARS_B)  # here it is no value but a choice
        return move

    def _do(self, take: Take, packed: tuple[object, ...]) -> Move:
        cpu = unpack(Cpu, packed)
        see_nothing(cpu)
        take(self.machine, cpu, self._vmcb)
        return self._after(cpu)

    def _execute(self, cpu: Cpu) -> Move | None:
        see_nothing(cpu)
        self._look_for_contract(cpu)
        next_instruction(self.machine, cpu, self._vmcb, self._ghcb)
        if cpu.door == SVM_EXIT_VMRUN:
            self.runs_guest = True
            return None
        if cpu.door and not answer_vmgexit(self.machine, cpu):
            self.without_contract = f"VMGEXIT {cpu.door:#x} has no contract"
        return self._after(cpu)

    def _look_for_contract(self, cpu: Cpu) -> None:
        """Things that guests, or SEV-ES guests, do and no contract says what comes of them."""
        if cpu.rip >= CODE_SIZE:
            return
        op, arg = self.machine.ops[cpu.rip], self.machine.args[cpu.rip]
        if op == OP_WRMSR and cpu.rax & ~EFER_MODELLED:
            self.without_contract = f"EFER {cpu.rax:#x}: bits other than SCE, LME, LMA, NXE and SVME are not modelled"
        if not self.machine.sev_es:
            return
        if cpu.rflags & X86_EFLAGS_TF and op in AUTOMATIC_EXITS:
            self.without_contract = "a single step over an automatic exit has no contract"
        if op == OP_FROM_DR and arg < 4 and not cpu.debug_swap and self._host_breakpoints:
            what = f"DR{arg} of an SEV-ES guest without DebugSwap has no contract: the host uses it as well"
            self.without_contract = what

    def _after(self, cpu: Cpu) -> Move:
        shown = observation(cpu)
        forget_seen(cpu)
        return shown, self._cpus(pack(cpu))
