"""The patient reference: the machine without hypervisor, free to be late, but never to forget.

A state is (number of a Cpu, arrivals in transit as a bit set, how many more are in transit whose sender is done).
Its rules, and where they come from, are in docs/design.md ("The patient reference"):
  a. an arrival is in transit from its stamp;
  b. it is latched at any later point, but no instruction retires between the end of its sender's call and the latching;
  c. an NMI merges into a latched NMI only while NMIs are blocked; else it waits until the first is taken;
  d. a latched, unblocked NMI is taken now or later, but it is owed;
  e. what the guest itself causes is never late.
Whether an STI or MOV SS shadow blocks NMIs is up to the implementation, so the reference may do either each time.

The reference is held to what the guest and the senders can see, not to the instructions of the observed run: where
nothing is shown it may be ahead or behind. Rule b speaks of its own instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iretrace.explore.interned import Interned
from iretrace.explore.monitor import Observation, Stamp
from iretrace.litmus.test import Test
from iretrace.machine.boundary import latch_nmi, take_nmi
from iretrace.machine.cpu import CODE_SIZE, OP_SPIN, SEEN_NOTHING, SHADOW_NONE, Cpu, Machine, see_nothing
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.guest import execute
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack, unpack
from iretrace.world.doors import answer_vmgexit
from iretrace.world.guest import make_cpu, make_machine

Ref = tuple[int, int, int]
"""(Cpu by number, in transit with the sender still at it, in transit with the sender done)."""

Move = tuple[Observation | None, int]
"""(what it shows, the Cpu after it)."""


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
    if cpu.rip < CODE_SIZE and machine.ops[cpu.rip] == OP_SPIN:
        return f"spins at {cpu.rip}"
    return ""


def loops_through(rips: Iterable[int]) -> str:
    """The ending of a run that executes these instructions again and again."""
    return "loops through " + ", ".join(str(rip) for rip in sorted(set(rips)))


@dataclass(slots=True)
class Known:
    """What one Cpu can do, worked out once."""

    rip: int
    ending: str
    room: bool
    """An arrival can be latched: the latch is empty, or blocked and so merges."""
    due: bool
    """An NMI is latched that nothing but a shadow holds: it may be taken, and is owed."""
    latched: int
    """The Cpu with its NMI latched."""
    taken: Move | None
    """Taking the latched NMI, if it is due."""
    executed: Move | None
    """Executing the next instruction, unless halted or shut down."""


class PatientReference:
    """The reference machine of a test, for explore.monitor.Monitor."""

    def __init__(self, test: Test, vcpu: str, knobs: int) -> None:
        self.machine = make_machine(test, vcpu, knobs)
        self._cpus: Interned[tuple[object, ...]] = Interned()
        self._known: dict[int, Known] = {}
        cpu = make_cpu(test)
        cpu.cold = 0  # no nested paging on bare metal
        self._first = self._cpus(pack(cpu))
        self._vmcb = Vmcb()
        self._ghcb = Ghcb()
        self.without_contract = ""
        """Not empty: a VMGEXIT without a contract was executed; the verdict is undetermined."""

    def start(self) -> Ref:
        """The machine as main begins."""
        return (self._first, 0, 0)

    def stamp(self, state: Ref, event: Stamp) -> Ref:
        """("start", i): arrival i is in transit. ("end", i): its sender's call has returned."""
        cpu, transit, done = state
        what, arrival = event
        bit = 1 << arrival
        if what == "start":
            return (cpu, transit | bit, done)
        if transit & bit:
            return (cpu, transit & ~bit, done + 1)
        return state

    def moves(self, state: Ref) -> Iterator[tuple[Observation | None, Ref]]:
        """Latch an arrival, take the latched NMI, or execute the next instruction."""
        cpu, transit, done = state
        known = self.known(cpu)
        if known.room:
            if done:
                yield None, (known.latched, transit, done - 1)
            for arrival in range(transit.bit_length()):
                if transit >> arrival & 1:
                    yield None, (known.latched, transit & ~(1 << arrival), done)
        if known.taken is not None:
            shown, after = known.taken
            yield shown, (after, transit, done)
        # No arrival whose sender is done is still in transit, unless it waits for the latched NMI to be taken.
        if known.executed is not None and (done == 0 or known.due):
            shown, after = known.executed
            yield shown, (after, transit, done)

    def owes_nothing(self, state: Ref) -> bool:
        """Nothing is in transit, and no NMI waits that nothing holds. After a shutdown nothing can come any more."""
        cpu, transit, done = state
        known = self.known(cpu)
        return known.ending == "shutdown" or (transit == 0 and done == 0 and not known.due)

    def goes_on(self, state: Ref) -> str:
        """How it goes on for ever by itself, showing nothing and owing nothing; "" if it does not."""
        way: list[int] = []
        at = state[0]
        while at not in way:
            known = self.known(at)
            if known.due:
                return ""
            if known.ending:
                return known.ending
            if known.executed is None or known.executed[0] is not None:
                return ""
            way.append(at)
            at = known.executed[1]
        return loops_through(self.known(cpu).rip for cpu in way[way.index(at) :])

    def rip(self, state: Ref) -> int:
        """Where it executes."""
        return self.known(state[0]).rip

    def ending(self, state: Ref) -> str:
        """How this state goes on for ever as it is ("" if it does not)."""
        return self.known(state[0]).ending

    def known(self, number: int) -> Known:
        """What a Cpu can do."""
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._work_out(self._cpus.values[number])
        return known

    def _work_out(self, packed: tuple[object, ...]) -> Known:
        cpu = unpack(Cpu, packed)
        blocked = cpu.nmi_masked or cpu.shadow != SHADOW_NONE
        due = bool(cpu.nmi_latched and not cpu.nmi_masked and not cpu.shutdown)
        ending = ending_of(self.machine, cpu)
        latched = unpack(Cpu, packed)
        latch_nmi(latched)
        return Known(
            rip=cpu.rip,
            ending=ending,
            room=bool(blocked or not cpu.nmi_latched),
            due=due,
            latched=self._cpus(pack(latched)),
            taken=self._take(unpack(Cpu, packed)) if due else None,
            executed=None if cpu.halted or cpu.shutdown else self._execute(cpu),
        )

    def _take(self, cpu: Cpu) -> Move:
        see_nothing(cpu)
        take_nmi(self.machine, cpu, self._vmcb)
        return self._after(cpu)

    def _execute(self, cpu: Cpu) -> Move:
        see_nothing(cpu)
        execute(self.machine, cpu, self._vmcb, self._ghcb)
        if cpu.door and not answer_vmgexit(cpu):
            self.without_contract = f"VMGEXIT {cpu.door:#x} has no contract"
        return self._after(cpu)

    def _after(self, cpu: Cpu) -> Move:
        shown = observation(cpu)
        forget_seen(cpu)
        return shown, self._cpus(pack(cpu))
