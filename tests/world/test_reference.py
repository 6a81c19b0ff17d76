"""The patient reference, rule by rule: which histories it explains, and which endings."""

from __future__ import annotations

from iretrace.explore.monitor import EMPTY, Monitor
from iretrace.litmus.parse import parse
from iretrace.machine.cpu import DF_VECTOR, NMI_VECTOR, SEEN_DELIVERY, SEEN_FLAGS, SEEN_MARK, X86_EFLAGS_IF
from iretrace.world.reference import PatientReference

HEADER = "test t\nabout A test of the reference.\nvcpu sev-es\noutside nmi, nmi, nmi\n"
MARKED_MAIN = "\nmain:\n    mark m\n    spin\nnmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
SPINNING_MAIN = "\nmain:\n    spin\nnmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
NEVER_COMPLETE = "\nmain:\n    spin\nnmi:\n    mark n\n    iretq\n"
HALTING_MAIN = "\nmain:\n    hlt\n    mark m\n    spin\nnmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"
STI_MAIN = "\nmain:\n    sti\n    mark m\n    spin\nnmi:\n    mark n\n    vmgexit nmi_complete\n    iretq\n"


class History:
    """A history as the reference is asked about it: stamps and what the guest sees, in order."""

    def __init__(self, program: str, header: str = HEADER) -> None:
        self.test = parse(header + program, "t.litmus")
        self.reference = PatientReference(self.test, self.test.vcpus[0], 0)
        self.monitor = Monitor(self.reference)
        self.at = self.monitor.start()

    def start(self, *arrivals: int) -> History:
        """Senders begin."""
        for number in arrivals:
            self.at = self.monitor.stamp(self.at, ("start", number))
        return self

    def end(self, *arrivals: int) -> History:
        """Senders are done."""
        for number in arrivals:
            self.at = self.monitor.stamp(self.at, ("end", number))
        return self

    def sent(self, *arrivals: int) -> History:
        """Senders begin and are done."""
        for number in arrivals:
            self.start(number).end(number)
        return self

    def nmi(self, rip: int, rflags: int = 0) -> History:
        """An NMI is delivered at an instruction."""
        return self.seen(NMI_VECTOR, rip, rflags)

    def seen(self, vector: int, rip: int, rflags: int = 0, error: int = 0) -> History:
        """An event is delivered at an instruction."""
        return self._see((SEEN_DELIVERY, vector, rip, rflags, error))

    def flags(self, rip: int, rflags: int) -> History:
        """PUSHFQ shows RFLAGS."""
        return self._see((SEEN_FLAGS, 0, rip, rflags, 0))

    def mark(self, name: str) -> History:
        """A mark is seen."""
        return self._see((SEEN_MARK, self.test.marks.index(name), 0, 0, 0))

    def _see(self, shown: tuple[int, ...]) -> History:
        if self.at != EMPTY:
            self.at = self.monitor.observe(self.at, shown)
        return self

    @property
    def explained(self) -> bool:
        """Something explains it so far."""
        return self.at != EMPTY

    def ends(self, how: str) -> bool:
        """Something explains that it ends so, with nothing owed."""
        return self.explained and any(
            self.reference.owes_nothing(ref) and self.reference.goes_on(ref) == how
            for ref in self.monitor.members(self.at)
        )


# a. An arrival is in transit from its stamp. --------------------------------------------------------------------------


def test_an_nmi_is_not_seen_before_it_was_sent() -> None:
    assert not History(SPINNING_MAIN).nmi(0).explained


def test_an_nmi_may_be_seen_as_soon_as_its_sender_has_begun() -> None:
    assert History(SPINNING_MAIN).start(0).nmi(0).explained


def test_each_nmi_is_seen_once() -> None:
    assert not History(SPINNING_MAIN).sent(0).nmi(0).mark("n").nmi(0).explained


def test_an_nmi_that_is_still_in_transit_is_owed() -> None:
    assert not History(SPINNING_MAIN).start(0).ends("spins at 0")


# b. It is latched before an instruction retires after its sender's end. ----------------------------------------------


def test_nmis_that_were_sent_while_one_is_served_have_merged_when_its_handler_goes_on() -> None:
    served = History(SPINNING_MAIN).sent(0).nmi(0).sent(1, 2).mark("n").nmi(0).mark("n")
    assert served.explained
    assert not served.nmi(0).explained


def test_an_nmi_whose_sender_is_not_done_need_not_have_merged() -> None:
    served = History(SPINNING_MAIN).sent(0).nmi(0).sent(1).start(2).mark("n").nmi(0).mark("n").end(2)
    assert served.nmi(0).explained


def test_an_nmi_whose_sender_is_not_done_may_have_merged() -> None:
    served = History(SPINNING_MAIN).sent(0).nmi(0).sent(1).start(2).mark("n").nmi(0).mark("n").end(2)
    assert served.ends("spins at 0")


# c. NMIs merge only while they are blocked. --------------------------------------------------------------------------


def test_two_nmis_sent_while_none_is_served_are_both_owed() -> None:
    one = History(SPINNING_MAIN).sent(0, 1).nmi(0).mark("n")
    assert not one.ends("spins at 0")
    assert one.nmi(0).mark("n").ends("spins at 0")


def test_of_three_nmis_sent_while_none_is_served_two_merge() -> None:
    two = History(SPINNING_MAIN).sent(0, 1, 2).nmi(0).mark("n").nmi(0).mark("n")
    assert two.ends("spins at 0")
    assert not two.nmi(0).explained


def test_an_nmi_that_waits_for_a_latched_one_lets_instructions_retire() -> None:
    assert History(MARKED_MAIN).sent(0, 1).mark("m").nmi(1).mark("n").nmi(1).explained


def test_a_shadow_may_merge_nmis_and_need_not() -> None:
    """Whether a shadow blocks NMIs is up to the processor."""
    merged = History(STI_MAIN).sent(0, 1).nmi(1, X86_EFLAGS_IF).mark("n")
    assert merged.mark("m").ends("spins at 2")
    both = History(STI_MAIN).sent(0, 1).nmi(1, X86_EFLAGS_IF).mark("n").nmi(1, X86_EFLAGS_IF).mark("n")
    assert both.mark("m").ends("spins at 2")


def test_an_nmi_may_be_taken_in_a_shadow_or_after_it() -> None:
    assert History(STI_MAIN).sent(0).nmi(1, X86_EFLAGS_IF).explained
    assert History(STI_MAIN).sent(0).mark("m").nmi(2, X86_EFLAGS_IF).explained


# d. What is latched and not blocked is taken now or later, but it is owed. -------------------------------------------


def test_an_nmi_may_be_late() -> None:
    assert History(MARKED_MAIN).sent(0).mark("m").nmi(1).explained


def test_an_nmi_that_never_comes_is_not_explained() -> None:
    assert not History(MARKED_MAIN).sent(0).mark("m").ends("spins at 1")


def test_an_nmi_is_not_taken_while_another_is_served() -> None:
    served = History(SPINNING_MAIN).sent(0).nmi(0)
    assert not served.sent(1).nmi(2).explained


def test_an_nmi_that_is_masked_for_ever_is_not_owed() -> None:
    assert History(NEVER_COMPLETE).sent(0).nmi(0).mark("n").sent(1).ends("spins at 0")


def test_hlt_ends_only_by_an_event_that_is_taken() -> None:
    assert not History(HALTING_MAIN).sent(0).mark("m").explained
    assert History(HALTING_MAIN).sent(0).nmi(1).mark("n").mark("m").explained


def test_an_nmi_taken_before_hlt_does_not_end_it() -> None:
    before = History(HALTING_MAIN).sent(0).nmi(0).mark("n")
    assert before.ends("halted at 1")
    assert not before.mark("m").explained


def test_a_sleep_with_an_nmi_pending_is_not_explained() -> None:
    assert not History(HALTING_MAIN).sent(0).ends("halted at 1")


def test_a_sleep_with_a_masked_nmi_pending_is_explained() -> None:
    served = History("\nmain:\n    spin\nnmi:\n    mark n\n    hlt\n").sent(0).nmi(0).mark("n").sent(1)
    assert served.ends("halted at 3")


# e. What the guest itself causes is never late. ----------------------------------------------------------------------


def test_instructions_do_not_change_their_order() -> None:
    assert not History("\nmain:\n    mark m\n    mark o\n    spin\nnmi:\n    iretq\n").mark("o").explained


def test_a_run_that_shows_no_more_though_it_should_is_not_explained() -> None:
    assert not History(MARKED_MAIN).ends("spins at 1")


def test_the_fault_of_an_nmi_without_a_gate_comes_with_it() -> None:
    no_gate = "\nmain:\n    spin\ndf:\n    mark d\n    spin\n"
    assert not History(no_gate).sent(0).mark("d").explained
    assert History(no_gate).sent(0)._see((SEEN_DELIVERY, DF_VECTOR, 0, 0, 0)).mark("d").ends("spins at 2")


# NMI_COMPLETE, the door. ----------------------------------------------------------------------------------------------


def test_nmi_complete_opens_the_gate_and_iretq_does_not() -> None:
    complete_first = "\nmain:\n    spin\nnmi:\n    vmgexit nmi_complete\n    mark n\n    iretq\n"
    assert History(complete_first).sent(0).nmi(0).sent(1).nmi(2).explained
    assert not History(NEVER_COMPLETE).sent(0).nmi(0).mark("n").sent(1).nmi(0).explained


def test_nmi_complete_need_not_be_paired() -> None:
    unpaired = "\nmain:\n    vmgexit nmi_complete\n    mark m\n    spin\nnmi:\n    mark n\n    iretq\n"
    assert History(unpaired).mark("m").sent(0).nmi(2).mark("n").ends("spins at 2")


# Endings. -------------------------------------------------------------------------------------------------------------


def test_a_shutdown_owes_nothing_whatever_is_in_transit() -> None:
    test = parse(HEADER + "\nmain:\n    spin\nnmi:\n    iretq\n", "t.litmus")
    reference = PatientReference(test, "sev-es", 0)
    reference.bare.machine.idt[NMI_VECTOR] = 0
    monitor = Monitor(reference)
    at = monitor.stamp(monitor.start(), ("start", 0))
    at = monitor.stamp(at, ("start", 1))
    endings = {reference.goes_on(ref) for ref in monitor.members(at) if reference.owes_nothing(ref)}
    assert endings == {"shutdown"}


def test_a_loop_through_instructions_is_named_by_them() -> None:
    history = History("\nmain:\n    hlt\nnmi:\n    vmgexit nmi_complete\n    iretq\n")
    ref = (history.reference.start()[0], 0, 0, False, False)
    assert history.reference.goes_on(ref) == "halted at 1"
