"""Random plain guests: the reference explains a processor that takes what is due at once, and acquits who is right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.check import check
from iretrace.explore.graph import Limits
from iretrace.explore.monitor import EMPTY, Monitor
from iretrace.litmus.parse import parse
from iretrace.machine.boundary import bare_step, latch_irq, latch_nmi
from iretrace.machine.cpu import KNOB_MOVSS_BLOCKS_NMI, KNOB_STI_BLOCKS_NMI, X86_EFLAGS_TF
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.verdict import Verdict
from iretrace.world.bare import ending_of, observation
from iretrace.world.guest import make_cpu, make_machine
from iretrace.world.reference import PatientReference
from tests.world.plain import Plain

SINGLE = [
    "nop",
    "sti",
    "cli",
    "mov ss, ax",
    "hlt",
    "cpuid",
    "pushfq",
    "popfq",
    "int3",
    "int 0x20",
    "ud2",
    "clgi",
    "stgi",
    "vmrun rax",
]
STEP = "pushfq\n    or qword [rsp], TF\n    popfq"
MARK = "mark {}"
KINDS = ["nmi", "irq", "irq", "nmi"]


@st.composite
def programs(draw: st.DrawFn, outside: str, most: int = 4, cold: bool = False) -> str:
    """A litmus test with a few instructions in main and in the handlers of NMI and interrupt, and perhaps with stacks
    of its own, some of them cold."""

    def body(name: str, end: str) -> str:
        ops = draw(st.lists(st.sampled_from([*SINGLE, STEP, MARK, MARK]), max_size=most))
        lines = [f"    {op.format(name[0] + str(number))}\n" for number, op in enumerate(ops)]
        return f"{name}:\n{''.join(lines)}    {end}\n"

    ist = draw(st.sampled_from(["", "ist nmi\n", "ist db\n", "ist nmi, db\n"]))
    pages = ["main", *ist.removeprefix("ist ").strip().split(", ")] if cold else []
    chosen = [page for page in pages if page and draw(st.booleans())]
    stacks = ist + (f"cold {', '.join(chosen)}\n" if chosen else "")
    interrupts = draw(st.sampled_from(["", "interrupts on\n"]))
    end = draw(st.sampled_from(["iretq", "iretq", "iretq", "spin"]))
    code = body("main", "done: spin") + body("nmi", end) + body("irq", "iretq")
    handlers = "db:\n    mark d\n    iretq\nbp:\n    mark b\n    iretq\nint:\n    mark t\n    iretq\n"
    ud = "ud:\n    mark u\n    mov qword [rsp], done\n    iretq\n"
    return f"test t\nabout random\nvcpu plain\noutside {outside}\n{interrupts}{stacks}\n{code}{handlers}{ud}"


@settings(max_examples=80)
@given(programs(", ".join(KINDS)), st.lists(st.integers(0, 30), min_size=4, max_size=4), st.booleans(), st.booleans())
def test_all_that_a_prompt_processor_does_is_explained(
    program: str, when: list[int], sti_blocks: bool, movss_blocks: bool
) -> None:
    """Events arrive before given steps and are latched at once; what is due is taken at once. An NMI that would merge
    with one that is just about to be taken comes a step later (rule c)."""
    test = parse(program, "t.litmus")
    knobs = sti_blocks << KNOB_STI_BLOCKS_NMI | movss_blocks << KNOB_MOVSS_BLOCKS_NMI
    machine, cpu = make_machine(test, "plain", knobs), make_cpu(test)
    reference = PatientReference(test, "plain", 0)
    monitor = Monitor(reference)
    at = monitor.start()
    waiting = sorted((then, number) for number, then in enumerate(when))
    for step in range(150):
        while waiting and waiting[0][0] <= step:
            arrival = waiting[0][1]
            if KINDS[arrival] == "nmi" and cpu.nmi_latched and not cpu.nmi_masked and not cpu.shadow:
                break
            waiting.pop(0)
            at = monitor.stamp(at, ("start", arrival))
            latch_nmi(cpu) if KINDS[arrival] == "nmi" else latch_irq(cpu)
            at = monitor.stamp(at, ("end", arrival))
        bare_step(machine, cpu, Vmcb(), Ghcb())
        shown = observation(cpu)
        if shown is not None:
            at = monitor.observe(at, shown)
            assert at != EMPTY, f"step {step} shows {shown}"
    # Now it spins, sleeps or is shut down, or it goes round in a loop.
    how = ending_of(machine, cpu)
    if how and not cpu.trap and not cpu.rflags & X86_EFLAGS_TF:
        members = monitor.members(at)
        assert any(reference.owes_nothing(ref) and reference.goes_on(ref) == how for ref in members)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.sampled_from(["nmi", "nmi, nmi", "nmi, irq", "nmi, maybe nmi, irq", "nmi, signal", "irq, signal"]).flatmap(
        lambda outside: programs(outside, most=3, cold=True)
    ),
    st.sampled_from(["tickless", "ticking"]),
)
def test_a_right_hypervisor_is_acquitted_whatever_its_guest_does(program: str, host: str) -> None:
    """With every value of the knobs; a limit may be met."""
    result = check(parse(program, "t.litmus"), "plain", host, Plain(), Limits(max_states=800))
    assert result.verdict is not Verdict.VIOLATED, result.reason
    assert "disputed" not in result.reason
