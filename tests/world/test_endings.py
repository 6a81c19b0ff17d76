"""How runs of the product go on for ever, and which of these endings the reference explains."""

from __future__ import annotations

from iretrace.explore.fair import endings
from iretrace.explore.graph import Limits, explore
from iretrace.litmus.parse import parse
from iretrace.world.endings import explained, how
from iretrace.world.product import Product
from tests.world.small import Small

OVERWRITTEN = """test endings
about Two NMIs on one IST stack: the handler returns into itself and marks for ever.
vcpu sev-es
outside {outside}
ist nmi

main:
    spin
nmi:
    vmgexit nmi_complete
    mark n
    iretq
"""
IDLE = """test endings
about Sleeps.
vcpu sev-es
outside {outside}

main:
    hlt
nmi:
    vmgexit nmi_complete
    iretq
"""
RIGHT = {("spins at 0", True), ("loops through 2, 3", True), ("loops through 3", True)}
"""The second NMI may come before the mark, at the IRETQ, or behind it."""


def judged(program: str, outside: str, mistake: str = "", host: str = "tickless") -> set[tuple[str, bool]]:
    """Each ending, and whether it is explained."""
    product = Product(parse(program.format(outside=outside), "t.litmus"), "sev-es", host, Small(mistake))
    graph = explore(product, Limits())
    found = set()
    for ending in endings(graph, product):
        says = how(product, graph, ending)
        found.add((says, explained(product, graph, ending, says)))
    return found


def test_a_run_that_shows_something_again_and_again_is_explained_by_one_that_does_too() -> None:
    assert judged(OVERWRITTEN, "nmi, nmi") == RIGHT


def test_a_run_that_shows_something_again_and_again_may_not_owe_an_nmi() -> None:
    assert {("loops through 2, 3", owes_none) for owes_none in (False, True)} <= judged(
        OVERWRITTEN, "nmi, nmi, maybe nmi", "defer"
    )


def test_an_endless_loop_on_a_ticking_host_is_the_same_loop() -> None:
    assert judged(OVERWRITTEN, "nmi, nmi", host="ticking") == RIGHT


def test_a_loop_through_iretq_alone_is_named_by_it() -> None:
    program = OVERWRITTEN.replace("    vmgexit nmi_complete\n    mark n\n", "    mark n\n    vmgexit nmi_complete\n")
    assert judged(program, "nmi, nmi") == {("spins at 0", True), ("loops through 3", True)}


def test_sleep_is_an_ending_and_an_idle_loop_that_is_awake_is_another() -> None:
    assert judged(IDLE, "nmi") == {("halted at 1", True)}
    assert ("loops through 0, 1", False) in judged(IDLE, "nmi", "insomnia")
