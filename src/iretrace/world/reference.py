"""The patient reference: the machine without hypervisor, free to be late, but never to forget.

A state is (packed Cpu, arrivals in transit, those whose sender is done), the last two as bit sets over the test's
arrivals. Its rules, and where they come from, are in docs/design.md ("The patient reference"):
  a. an arrival is in transit from its stamp;
  b. it is latched at any later point, but no instruction retires between the end of its sender's call and the latching;
  c. an NMI merges into a latched NMI only while NMIs are blocked; else it waits until the first is taken;
  d. a latched, unblocked NMI is taken now or later, but it is owed;
  e. what the guest itself causes is never late.
Whether an STI or MOV SS shadow blocks NMIs is up to the implementation, so the reference may do either each time.
"""

from __future__ import annotations

from collections.abc import Iterator

from iretrace.explore.monitor import Observation, Stamp
from iretrace.litmus.test import Test
from iretrace.machine.boundary import latch_nmi, take_nmi
from iretrace.machine.cpu import OP_SPIN, SEEN_NOTHING, SHADOW_NONE, Cpu, Machine, see_nothing
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.guest import execute
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack, unpack
from iretrace.world.doors import answer_vmgexit
from iretrace.world.guest import make_cpu, make_machine

Ref = tuple[tuple[object, ...], int, int]
"""(packed Cpu, in transit, of these: sender done)."""


def observation(cpu: Cpu) -> Observation | None:
    """What the last step showed to the guest, in the form that both sides are compared in."""
    if cpu.seen == SEEN_NOTHING:
        return None
    return (cpu.seen, cpu.seen_vector, cpu.seen_rip, cpu.seen_rflags, cpu.seen_error)


def forget_seen(cpu: Cpu) -> None:
    """What was shown is in the history; it is no part of a state."""
    see_nothing(cpu)


def ending_of(machine: Machine, cpu: Cpu) -> str:
    """How a processor that stays as it is goes on for ever; "" if it does not."""
    if cpu.shutdown:
        return "shutdown"
    if cpu.halted:
        return f"halted at {cpu.rip}"
    if machine.ops[cpu.rip] == OP_SPIN:
        return f"spins at {cpu.rip}"
    return ""


class PatientReference:
    """The reference machine of a test, for explore.monitor.Monitor."""

    def __init__(self, test: Test, vcpu: str, knobs: int) -> None:
        self.machine = make_machine(test, vcpu, knobs)
        cpu = make_cpu(test)
        cpu.cold = 0  # no nested paging on bare metal
        self._first = cpu
        self._vmcb = Vmcb()
        self._ghcb = Ghcb()
        self.without_contract = ""
        """Not empty: a VMGEXIT without a contract was executed; the verdict is undetermined."""

    def start(self) -> Ref:
        """The machine as main begins."""
        return (pack(self._first), 0, 0)

    def stamp(self, state: Ref, event: Stamp) -> Ref:
        """("start", i): arrival i is in transit. ("end", i): its sender's call has returned."""
        cpu, transit, done = state
        what, arrival = event
        if what == "start":
            return (cpu, transit | 1 << arrival, done)
        return (cpu, transit, done | (transit & 1 << arrival))

    def moves(self, state: Ref) -> Iterator[tuple[Observation | None, Ref]]:
        """Latch an arrival, take the latched NMI, or execute the next instruction."""
        packed, transit, done = state
        cpu = unpack(Cpu, packed)
        yield from self._latch(cpu, packed, transit, done)
        if cpu.nmi_latched and not cpu.nmi_masked and not cpu.shutdown:
            taking = unpack(Cpu, packed)
            see_nothing(taking)
            take_nmi(self.machine, taking, self._vmcb)
            yield self._after(taking, transit, done)
        if self._may_retire(cpu, done) and not cpu.halted and not cpu.shutdown:
            see_nothing(cpu)
            execute(self.machine, cpu, self._vmcb, self._ghcb)
            if cpu.door and not answer_vmgexit(cpu):
                self.without_contract = f"VMGEXIT {cpu.door:#x} has no contract"
            yield self._after(cpu, transit, done)

    def owes_nothing(self, state: Ref) -> bool:
        """Nothing is in transit, and no NMI waits that nothing holds."""
        cpu = unpack(Cpu, state[0])
        return state[1] == 0 and (not cpu.nmi_latched or bool(cpu.nmi_masked) or bool(cpu.shutdown))

    def ending(self, state: Ref) -> str:
        """How this state goes on for ever by itself ("" if it does not)."""
        return ending_of(self.machine, unpack(Cpu, state[0]))

    def _latch(
        self, cpu: Cpu, packed: tuple[object, ...], transit: int, done: int
    ) -> Iterator[tuple[Observation | None, Ref]]:
        blocked = cpu.nmi_masked or cpu.shadow != SHADOW_NONE
        if not transit or (cpu.nmi_latched and not blocked):
            return
        if not cpu.nmi_latched:
            latched = unpack(Cpu, packed)
            latch_nmi(latched)
            packed = pack(latched)
        for arrival in range(transit.bit_length()):
            bit = 1 << arrival
            if transit & bit:
                yield None, (packed, transit & ~bit, done & ~bit)

    @staticmethod
    def _may_retire(cpu: Cpu, done: int) -> bool:
        """No arrival whose sender is done is still in transit, unless it waits for the latched NMI to be taken."""
        return done == 0 or bool(cpu.nmi_latched and not cpu.nmi_masked)

    def _after(self, cpu: Cpu, transit: int, done: int) -> tuple[Observation | None, Ref]:
        shown = observation(cpu)
        forget_seen(cpu)
        return shown, (pack(cpu), transit, done)
