"""The patient reference: the machine without hypervisor, free to be late, but never to forget.

A state is (number of a Cpu, arrivals in transit as a bit set, how many more NMIs are in transit whose sender is done,
which delivery has begun: that of the interrupt, of the NMI or of the SMI). Its rules, and where they come from, are
in docs/design.md ("The patient reference"):
  a. an arrival is in transit from its stamp;
  b. it is latched at any later point, but no instruction retires between the end of its sender's call and the latching;
  c. an NMI merges into a latched NMI only while NMIs are blocked; else it waits until the first is taken, and if an SMI
     comes first it can go on waiting in SMM. Interrupts, SMIs and INITs merge freely;
  d. a latched event that nothing holds is taken now or later, but it is owed. Of several the highest goes first: the
     interrupt's delivery does not begin while an NMI waits that nothing holds, and neither does while an SMI or an
     INIT does. Once begun it shows before all else;
  e. what the guest itself causes is never late.
Whether an STI or MOV SS shadow blocks NMIs and SMIs is up to the implementation, so the reference may do either each
time.

The reference is held to what the guest and the senders can see, not to the instructions of the observed run: where
nothing is shown it may be ahead or behind. Rule b speaks of its own instructions.
"""

from __future__ import annotations

from collections.abc import Iterator

from iretrace.explore.monitor import Observation, Stamp
from iretrace.litmus.test import Test
from iretrace.machine.cpu import KNOB_INIT_KEEPS_NMI_LATCH, Cpu, knob
from iretrace.world.bare import HELD, Bare, Known, Move, loops_through
from iretrace.world.debugger import is_debug_exception, without_tf
from iretrace.world.ioctls import sender_kind
from iretrace.world.protocol import PROCESSOR, Processor

Ref = tuple[int, int, int, int, bool]
"""(Cpu by number, in transit with the sender still at it, NMIs in transit with the sender done, which delivery has
begun, debugger attached)."""

BEGUN_NOTHING = 0
BEGUN_IRQ = 1
BEGUN_NMI = 2
BEGUN_SMI = 3
"""The processor is in SMM, and its SMI has not been shown yet."""


class PatientReference:
    """The reference machine of a test, for explore.monitor.Monitor."""

    def __init__(self, test: Test, vcpu: str, knobs: int, processor: Processor = PROCESSOR) -> None:
        self.bare = Bare(test, vcpu, knobs, processor)
        self.known = self.bare.known
        self._kinds = [arrival.kind for arrival in test.outside]
        self._senders = [sender_kind(arrival) for arrival in test.outside]
        self._within = [arrival.within for arrival in test.outside]

    def start(self) -> Ref:
        """The machine as main begins."""
        return (self.bare.first, 0, 0, BEGUN_NOTHING, False)

    def stamp(self, state: Ref, event: Stamp) -> Ref | None:
        """("start", i): arrival i is in transit. ("end", i): its sender's call has returned.

        All but an NMI can be latched at once then: however long it waits to be latched, it merges or waits for ever. A
        signal is for the hypervisor's thread; the guest's processor does not know of it. An encrypted guest has no SMM,
        and is to see nothing of an SMI. ("call", i): the VMM's ioctl has been called. None: the arrival begins while
        the guest is in AP reset hold, and here it is not."""
        cpu, transit, done, begun, attached = state
        what, arrival = event
        if what in ("attach", "detach"):
            return (cpu, transit, done, begun, what == "attach")
        if what == "start" and not self.may_begin(state, arrival):
            return None
        kind = self._kinds[arrival]
        bit = 1 << arrival
        if what == "call":
            return (cpu, transit, done + (kind == "kvm-nmi"), begun, attached)
        if self._senders[arrival] == "signal" or (kind == "smi" and not self.bare.has_smm):
            return state
        if what == "start":
            return (cpu, transit | bit, done, begun, attached)
        if not transit & bit:
            return state
        if kind != "nmi":
            return (self._latched(self.known(cpu), kind), transit & ~bit, done, begun, attached)
        return (cpu, transit & ~bit, done + 1, begun, attached)

    def may_begin(self, state: Ref, arrival: int) -> bool:
        """An arrival of `in LABEL: init` begins while the guest is held there."""
        return self._within[arrival] < 0 or self._within[arrival] == self.known(state[0]).held_at

    def _latched(self, known: Known, kind: str) -> int:
        """The Cpu with an event latched that merges freely."""
        if kind == "irq":
            return known.irq_latched
        assert known.higher is not None
        return known.higher[("smi", "init", "sipi").index(kind)]

    def moves(self, state: Ref) -> Iterator[tuple[Observation | None, Ref]]:
        """Its moves; with a debugger attached TF is not compared, and a #DB of the guest's has no contract."""
        if not state[4]:
            yield from self._moves(state)
            return
        for shown, after in self._moves(state):
            if is_debug_exception(shown):
                self.bare.without_contract = "the guest has a #DB of its own while a debugger is attached"
            yield without_tf(shown), after

    def _moves(self, state: Ref) -> Iterator[tuple[Observation | None, Ref]]:
        """Latch an arrival, take the latched NMI, begin the interrupt, or do what the guest itself causes."""
        cpu, transit, done, begun, attached = state
        known = self.known(cpu)
        if known.room and done:
            yield None, (known.nmi_latched, transit, done - 1, begun, attached)
        for arrival in range(transit.bit_length()):
            if transit >> arrival & 1:
                rest = transit & ~(1 << arrival)
                if self._kinds[arrival] != "nmi":
                    yield None, (self._latched(known, self._kinds[arrival]), rest, done, begun, attached)
                elif known.room:
                    yield None, (known.nmi_latched, rest, done, begun, attached)
        if begun:
            move = self._begun_move(cpu, known, begun)
            yield move[0], (move[1], transit, done, BEGUN_NOTHING, attached)
            return
        if known.smi_taken is not None:
            yield None, (known.smi_taken[1], transit, done, BEGUN_SMI, attached)
        if known.init_taken is not None:
            yield None, (known.init_taken[1], transit, self._done_after_init(done), BEGUN_NOTHING, attached)
        for _, stray in known.init_strays:
            yield None, (stray, transit, done, BEGUN_NOTHING, attached)
        for _, started in known.sipi_taken:
            yield None, (started, transit, done, BEGUN_NOTHING, attached)
        if known.taken is not None and not known.higher_owed:
            shown, after = known.taken
            yield shown, (after, transit, done, BEGUN_NOTHING, attached)
            if self.bare.has_higher:
                yield None, (cpu, transit, done, BEGUN_NMI, attached)
        # With `done` an NMI is in transit whose sender is done: room for it comes with the latched one's delivery.
        if known.irq_taken is not None and done == 0 and not known.due and not known.higher_owed:
            yield None, (cpu, transit, done, BEGUN_IRQ, attached)
        if known.executed is not None and (done == 0 or known.waits):
            shown, after = known.executed
            yield shown, (after, transit, done, BEGUN_NOTHING, attached)
            if known.executed_otherwise is not None:
                shown, after = known.executed_otherwise
                yield shown, (after, transit, done, BEGUN_NOTHING, attached)

    def _done_after_init(self, done: int) -> int:
        """An NMI that waits behind the latched one shares its fate."""
        return done if done and knob(self.bare.machine, KNOB_INIT_KEEPS_NMI_LATCH) else 0

    def _begun_move(self, cpu: int, known: Known, begun: int) -> Move:
        """The delivery that has begun is shown."""
        if begun == BEGUN_SMI:
            return known.smi, cpu
        move = known.irq_taken if begun == BEGUN_IRQ else known.taken
        assert move is not None
        return move

    def owes_nothing(self, state: Ref) -> bool:
        """Nothing is in transit, and no event waits that nothing holds. After a shutdown nothing can come any more. A
        trap that is due holds all others: who stays there for ever owes them nothing."""
        cpu, transit, done, begun, _ = state
        known = self.known(cpu)
        if known.ending == "shutdown":
            return True
        if known.trap:
            return transit == 0
        owed = known.due or known.irq_owed or known.higher_owed
        return transit == 0 and done == 0 and not begun and not owed

    def goes_on(self, state: Ref) -> str:
        """How it goes on for ever by itself, showing nothing and owing nothing; "" if it does not."""
        way: list[int] = []
        at = state[0]
        while at not in way:
            known = self.known(at)
            if known.due or known.irq_owed or known.higher_owed:
                return ""
            if known.ending:
                return known.ending
            if known.executed is None or known.executed[0] is not None:
                return ""
            way.append(at)
            at = known.executed[1]
        return loops_through(self.known(cpu).rip for cpu in way[way.index(at) :])

    def cpu(self, state: Ref) -> Cpu:
        """A copy of its processor."""
        return self.bare.cpu(state[0])

    def waits(self, state: Ref, kind: str) -> bool:
        """Whether an NMI or an interrupt is latched or in transit."""
        cpu, (_, transit, done, _, _) = self.cpu(state), state
        coming = any(transit >> number & 1 and name == kind for number, name in enumerate(self._kinds))
        return coming or bool((cpu.nmi_latched or done) if kind == "nmi" else cpu.irr)

    def rip(self, state: Ref) -> int:
        """Where it executes."""
        return self.known(state[0]).rip

    def ending(self, state: Ref) -> str:
        """How this state goes on for ever as it is ("" if it does not)."""
        return HELD if self.bare.is_held_in_delivery(state[0]) else self.known(state[0]).ending
