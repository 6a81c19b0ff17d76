"""An excuse of QEMU's is for what its fault makes of a run, and for nothing else that may be wrong with it."""

from __future__ import annotations

from iretrace.litmus.corpus import select
from iretrace.litmus.test import VECTORS
from iretrace.live.emulation import excuse, mend
from iretrace.live.explain import Explainer
from iretrace.live.guests import make_guests
from iretrace.live.layout import SMI
from iretrace.live.observed import Run
from iretrace.live.walk import Delivery, Event, Mark, Shown

QEMU = "11.1.3"
IF = 0x200


class Bench:
    """A shipped test, and what a run of it may have shown."""

    def __init__(self, name: str) -> None:
        [self.test] = select([name])
        self.texts = [instruction.text for instruction in self.test.code]

    def comes(self, name: str, text: str, flags: int = 0) -> Delivery:
        """A delivery at the first instruction of this text."""
        return Delivery(VECTORS[name], self.texts.index(text), flags, 0)

    def mark(self, name: str) -> Mark:
        return Mark(self.test.marks.index(name))

    def smi(self, text: str, flags: int = 0) -> Delivery:
        """An SMI at the first instruction of this text."""
        return Delivery(SMI, self.texts.index(text), flags, 0)

    def excuse(self, *history: Event, placed: str = "", alone: bool = False, halted: str = "") -> str:
        """What is said for a guest with an event placed there that has shown this and then spins in main, or is halted
        at an instruction."""
        cut = self.texts.index(placed) if placed else -1
        guests = make_guests(self.test, 10, 0)
        guest = next((guest for guest in guests if set(guest.cuts) <= {cut} and guest.inside < 0), guests[0])
        ending, place = ("halted" if halted else "spins"), self.texts.index(halted or "spin")
        run = Run(guest, 0, history, True, ending, place, (0,) * len(self.test.outside))
        objection = Explainer(self.test).objection(run)
        assert objection, "the processor can show it, there is nothing to excuse"
        return excuse(run, objection, QEMU, alone)


def test_a_lost_db_of_a_breakpoint_is_excused_right_before_a_page_that_was_not_there() -> None:
    bench = Bench("watch-a-write")
    lost: list[Event] = [bench.comes("nmi", "mark m"), bench.mark("n"), bench.mark("m")]
    assert "cannot be fetched" in bench.excuse(*lost, placed="mark m")
    assert bench.excuse(*lost) == "", "nothing was placed"
    assert "cannot be fetched" not in bench.excuse(*lost, placed="mark m", alone=True), "no page is taken away"


def test_it_is_excused_too_where_the_event_had_come_before_the_access() -> None:
    bench = Bench("watch-a-write")
    before = bench.texts[0]
    lost: list[Event] = [bench.comes("nmi", before), bench.mark("n"), bench.mark("m")]
    assert "cannot be fetched" in bench.excuse(*lost, placed="mark m")
    assert bench.excuse(*lost) == "", "nothing was placed"
    late: list[Event] = [bench.comes("nmi", before), bench.mark("n"), bench.comes("db", "spin"), bench.mark("d")]
    assert bench.excuse(*late, placed="mark m") == "", "the #DB is late"


def test_what_else_is_wrong_with_an_event_behind_a_watched_access_is_not_excused() -> None:
    bench = Bench("watch-a-write")
    trap, nmi, m = bench.comes("db", "mark m"), bench.comes("nmi", "mark m"), bench.mark("m")
    twice: list[Event] = [trap, bench.mark("d"), trap, bench.mark("d"), nmi, bench.mark("n"), m]
    assert bench.excuse(*twice, placed="mark m") == "", "a #DB too many"
    with_tf = bench.comes("nmi", "mark m", 0x100)
    assert bench.excuse(trap, bench.mark("d"), with_tf, bench.mark("n"), m, placed="mark m") == "", "TF of KVM's"
    assert bench.excuse(trap, bench.mark("d"), m, placed="mark m") == "", "a lost NMI"


def test_a_lost_nmi_is_excused_if_its_frame_touches_the_word_that_was_pushed() -> None:
    bench = Bench("watch-a-write")
    trap, d, m = bench.comes("db", "mark m"), bench.mark("d"), bench.mark("m")
    assert "loses an injected NMI" in bench.excuse(trap, d, m)
    assert bench.excuse(m) == "", "no #DB took it away"
    assert "injected" not in bench.excuse(trap, d, m, alone=True), "nothing is injected"
    assert bench.excuse(trap, d, m, placed="push rax") == "", "QEMU aborts there"


def test_a_db_of_an_interrupts_frame_is_excused_if_it_is_what_is_missing() -> None:
    bench = Bench("watch-an-irq-frame")
    irq, i = bench.comes("irq", "spin", IF), bench.mark("i")
    assert "no frame of an interrupt" in bench.excuse(irq, i)
    assert bench.excuse() == "", "a lost interrupt is no fault of QEMU's under KVM"
    assert "loses an interrupt" in bench.excuse(alone=True)
    trap = Delivery(VECTORS["db"], dict(bench.test.handlers)[VECTORS["irq"]], 0, 0)
    assert bench.excuse(irq, trap, bench.mark("d"), i, bench.comes("irq", "spin", IF), i) == "", "a doubled interrupt"


def test_a_lost_db_is_excused_without_kvm_if_its_own_frame_is_watched() -> None:
    m = Bench("db-for-ever").mark("m")
    assert "loses an interrupt or #DB" in Bench("db-for-ever").excuse(m, alone=True)
    assert Bench("db-for-ever").excuse(m) == "", "under KVM it is not known"
    assert Bench("watch-a-write").excuse(Bench("watch-a-write").mark("m"), alone=True) == "", "it lies below the word"
    watched = Bench("watch-reads")
    assert watched.excuse(watched.mark("w"), alone=True) == "", "the frames are on stacks of their own"


def test_a_watched_word_alone_excuses_nothing() -> None:
    bench = Bench("watch-and-irq")
    trap, d, irq = bench.comes("db", "mark m", IF), bench.mark("d"), bench.comes("irq", "push rax", IF)
    i, m = bench.mark("i"), bench.mark("m")
    assert bench.excuse(irq, i, trap, d, m, placed="push rax") == "", "an interrupt in the shadow"
    assert bench.excuse(trap, d, m, placed="push rax") == "", "a lost interrupt"


def test_an_rf_is_dropped_by_an_iretq_that_an_nmi_has_made_run_with_rf() -> None:
    bench = Bench("break-at-an-instruction")
    trap, d, n, m = bench.comes("db", "mark m"), bench.mark("d"), bench.mark("n"), bench.mark("m")
    assert (
        "drops the RF" in bench.excuse(trap, d, bench.comes("nmi", "iretq"), n, trap, d, m)
        or "iretq" in bench.texts[:9]
    )
    inside = Delivery(VECTORS["nmi"], dict(bench.test.handlers)[VECTORS["db"]] + 2, 0, 0)
    assert "drops the RF" in bench.excuse(trap, d, inside, n, trap, d, m)
    behind = bench.comes("nmi", "mark m")
    assert bench.excuse(trap, d, behind, n, trap, d, m) == "", "the handler's IRETQ was over"
    assert bench.excuse(trap, d, trap, d, m) == "", "nothing had it run with RF"


def test_an_rf_is_dropped_by_an_iretq_that_kvm_steps_over() -> None:
    bench = Bench("break-on-iret")
    nmi, trap, n, d = bench.comes("nmi", "spin"), bench.comes("db", "iretq"), bench.mark("n"), bench.mark("d")
    again = bench.comes("nmi", "iretq")
    assert "drops the RF" in bench.excuse(nmi, n, trap, d, again, n, trap, d, trap, d)
    assert bench.excuse(nmi, n, trap, d, trap, d, again, n, trap, d) == "", "no NMI came there in between"


def test_a_breakpoint_while_gif_is_0_is_excused_between_clgi_and_stgi() -> None:
    bench = Bench("gif-discards-breakpoints")
    early, d, h = bench.comes("db", "mark h"), bench.mark("d"), bench.mark("h")
    assert "while GIF is 0" in bench.excuse(early, d, h, bench.comes("db", "spin"), d)
    assert bench.excuse(h, bench.comes("db", "add rsp, 8"), d, bench.comes("db", "spin"), d) == ""
    assert bench.excuse(h) == "", "a lost #DB"


def test_what_rsm_does_not_bring_back_is_excused_without_kvm_only() -> None:
    bench = Bench("smi-at-hlt")
    ended: list[Event] = [bench.smi("mark m"), bench.mark("s"), bench.mark("m")]
    assert "back into HLT" in bench.excuse(*ended, alone=True)
    assert bench.excuse(*ended) == "", "KVM executes RSM itself"
    bench = Bench("smi-in-sti-shadow")
    irq = bench.comes("irq", "push rax", IF)
    early: list[Event] = [bench.smi("push rax", IF), bench.mark("s"), irq, bench.mark("i"), bench.mark("m")]
    assert "back into an interrupt shadow" in bench.excuse(*early, alone=True)
    assert bench.excuse(*early) == ""


def test_an_init_that_should_be_held_is_excused_where_its_section_begins() -> None:
    bench = Bench("init-in-smm")
    assert "holds an INIT neither" in bench.excuse(bench.smi("spin"), bench.mark("s"), bench.mark("i"), alone=True)
    assert bench.excuse(bench.smi("spin"), bench.mark("s"), bench.mark("i")) == "", "KVM holds it"
    assert bench.excuse(bench.smi("spin"), bench.mark("t"), alone=True) == "", "another mark is missing"


def test_a_halted_guest_is_excused_if_an_init_should_have_come() -> None:
    bench = Bench("init-at-hlt")
    assert "does not end HLT" in bench.excuse(halted="mark m", alone=True)
    assert bench.excuse(halted="mark m") == ""
    assert bench.excuse(bench.mark("m"), alone=True) == "", "HLT has ended without it"


def test_a_wrmsr_that_should_be_refused_is_excused_without_kvm_only() -> None:
    bench = Bench("wrmsr-of-lme")
    assert "EFER.LME" in bench.excuse(bench.comes("nmi", "spin"), bench.mark("n"), alone=True)
    assert bench.excuse(bench.comes("nmi", "spin"), bench.mark("n")) == ""


def test_a_wrong_error_code_that_the_handler_shows_is_excused_with_it() -> None:
    bench = Bench("ud2-without-gate")
    test, texts = bench.test, bench.texts
    history: list[Event] = [Delivery(VECTORS["np"], texts.index("ud2"), 0, 0x32), Shown(0x32), bench.mark("p")]
    guest = make_guests(test, 10, 0)[0]
    run = Run(guest, 0, tuple(history), False, "spins", -1, (0,) * len(test.outside))
    mended = mend(run, Explainer(test).objection(run))
    assert mended is not None
    assert mended.history[:2] == (Delivery(VECTORS["np"], texts.index("ud2"), 0, 0x33), Shown(0x33))
    assert not Explainer(test).objection(mended)
