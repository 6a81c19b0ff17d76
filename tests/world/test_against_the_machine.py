"""The patient reference against a processor that takes what is due at once: it must explain all that this one does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.check import check
from iretrace.explore.graph import Limits
from iretrace.explore.monitor import EMPTY, Monitor
from iretrace.litmus.parse import parse
from iretrace.machine.boundary import bare_step, latch_nmi
from iretrace.machine.cpu import KNOB_MOVSS_BLOCKS_NMI, KNOB_STI_BLOCKS_NMI
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.verdict import Verdict
from iretrace.world.bare import ending_of, observation
from iretrace.world.doors import answer_vmgexit
from iretrace.world.guest import make_cpu, make_machine
from iretrace.world.reference import PatientReference
from tests.world.small import Small

PLAIN = ["nop", "sti", "cli", "mov ss, ax", "hlt", "push rax", "cpuid", "mark {}", "vmgexit nmi_complete"]
ARRIVALS = 3


@st.composite
def programs(draw: st.DrawFn, outside: str = "nmi, nmi, nmi", cold: bool = False) -> str:
    """A litmus test with up to four instructions in main and in the NMI handler, and perhaps with cold stacks."""

    def body(name: str, end: str) -> str:
        ops = draw(st.lists(st.sampled_from(PLAIN), max_size=4))
        lines = [f"    {op.format(name[0] + str(number))}\n" for number, op in enumerate(ops)]
        return f"{name}:\n{''.join(lines)}    {end}\n"

    ist = draw(st.sampled_from(["", "ist nmi\n", "ist vc\n", "ist nmi, vc\n"]))
    pages = ["main", *ist.removeprefix("ist ").strip().split(", ")] if cold else []
    chosen = [page for page in pages if page and draw(st.booleans())]
    stacks = ist + (f"cold {', '.join(chosen)}\n" if chosen else "")
    vc = "vc:\n    vmgexit forward\n    mark v\n    skip\n    iretq\n"
    end = draw(st.sampled_from(["iretq", "iretq", "spin", "hlt"]))
    code = body("main", draw(st.sampled_from(["spin", "hlt"]))) + body("nmi", end)
    return f"test t\nabout random\nvcpu sev-es\noutside {outside}\n{stacks}\n{code}{vc}"


@settings(max_examples=60)
@given(programs(), st.lists(st.integers(0, 25), min_size=ARRIVALS, max_size=ARRIVALS), st.booleans(), st.booleans())
def test_all_that_a_prompt_processor_does_is_explained(
    program: str, when: list[int], sti_blocks: bool, movss_blocks: bool
) -> None:
    """NMIs arrive before given steps and are latched at once; what is due is taken at once.

    One that would merge with an NMI that is just about to be taken comes a step later: bare metal does merge them,
    but this is what a hypervisor may not do (rule c)."""
    test = parse(program, "t.litmus")
    knobs = sti_blocks << KNOB_STI_BLOCKS_NMI | movss_blocks << KNOB_MOVSS_BLOCKS_NMI
    machine, cpu = make_machine(test, "sev-es", knobs), make_cpu(test)
    reference = PatientReference(test, "sev-es", 0)
    monitor = Monitor(reference)
    at = monitor.start()
    waiting = sorted((then, number) for number, then in enumerate(when))
    for step in range(120):
        while waiting and waiting[0][0] <= step and not (cpu.nmi_latched and not cpu.nmi_masked and not cpu.shadow):
            _, arrival = waiting.pop(0)
            at = monitor.stamp(at, ("start", arrival))
            latch_nmi(cpu)
            at = monitor.stamp(at, ("end", arrival))
        bare_step(machine, cpu, Vmcb(), Ghcb())
        if cpu.door and not answer_vmgexit(machine, cpu):
            return  # nobody knows what this means
        shown = observation(cpu)
        if shown is not None:
            at = monitor.observe(at, shown)
            assert at != EMPTY, f"step {step} shows {shown}"
    # Now it spins, sleeps or is shut down, or it goes round in a loop.
    how = ending_of(machine, cpu)
    if how:
        members = monitor.members(at)
        assert any(reference.owes_nothing(ref) and reference.goes_on(ref) == how for ref in members)


@pytest.mark.slow
@settings(max_examples=25)
@given(programs("nmi, maybe nmi", cold=True), st.sampled_from(["tickless", "ticking"]))
def test_a_right_hypervisor_is_acquitted_whatever_its_guest_does(program: str, host: str) -> None:
    """With every value of the knobs. A limit may be met, and an error code that nobody knows may be forwarded."""
    result = check(parse(program, "t.litmus"), "sev-es", host, Small(), Limits(max_states=3000))
    assert result.verdict is not Verdict.VIOLATED, result.reason
    assert "disputed" not in result.reason
