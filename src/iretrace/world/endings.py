"""How a run of the product goes on for ever, and whether the patient reference can go on in the same way.

The reference explains an ending if it, too, can go on for ever, owing nothing, and show what the loop shows: the same
loop of instructions, the same sleep, or, where something is shown again and again, the same again and again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from iretrace.explore.fair import Ending
from iretrace.explore.graph import Graph, Kind
from iretrace.world.bare import HELD, loops_through
from iretrace.world.core import Phase
from iretrace.world.product import GUEST_LABEL, Point, Product
from iretrace.world.reference import Ref


def point(graph: Graph, number: int) -> Point:
    """A state of the product by its number in the graph."""
    state = graph.states[number]
    assert isinstance(state, Point)
    return state


def how(product: Product, graph: Graph, ending: Ending) -> str:
    """How the guest goes on, in the words of the reference; for a loop the instructions that retire in it."""
    alone = product.ending(point(graph, ending.entry))
    if ending.stuck:
        return alone
    rips = {product.rip(point(graph, number)) for number in ending.members}
    if len(rips) == 1 and alone:
        return alone
    retiring = {n for n, _, kind, _ in _inside(product, graph, ending) if kind is Kind.RETIRE}
    return loops_through(product.rip(point(graph, number)) for number in retiring) if retiring else HELD


def can_exit(product: Product, graph: Graph, ending: Ending) -> bool:
    """The hypervisor runs in it again and again."""
    return any(product.core(point(graph, number)).phase != Phase.GUEST for number in ending.members)


def explained(product: Product, graph: Graph, ending: Ending, says: str) -> bool:
    """Some explanation of the history goes on in the same way, and owes nothing."""
    reference, monitor = product.reference, product.monitor
    steps = list(_inside(product, graph, ending))
    if all(shown is None for _, _, _, shown in steps):
        members = monitor.members(point(graph, ending.entry).monitor)
        return any(reference.owes_nothing(ref) and reference.goes_on(ref) == says for ref in members)
    alive = {
        number: {ref for ref in monitor.members(point(graph, number).monitor) if reference.owes_nothing(ref)}
        for number in ending.members
    }
    changed = True
    while changed:
        changed = False
        for number, to, _, shown in steps:
            staying = {ref for ref in alive[number] if _follows(product, ref, shown, alive[number], alive[to])}
            changed = changed or len(staying) < len(alive[number])
            alive[number] = staying
    return bool(alive[ending.entry])


def _inside(product: Product, graph: Graph, ending: Ending) -> Iterator[tuple[int, int, Kind, Hashable]]:
    """The run's own edges inside an ending: (from, to, kind, what it shows)."""
    for number in ending.members:
        for edge, to in graph.out[number]:
            if to in ending.members and edge.kind is not Kind.OUTSIDE:
                shown = product.did(point(graph, number)).shown if edge.label is GUEST_LABEL else None
                yield number, to, edge.kind, shown


def _follows(product: Product, ref: Ref, shown: Hashable, here: set[Ref], there: set[Ref]) -> bool:
    """From ref, moving silently among `here`, a step that shows this leads to one of `there`."""
    pending, met = [ref], {ref}
    while pending:
        at = pending.pop()
        if shown is None and at in there:
            return True
        for seen, after in product.reference.moves(at):
            if seen is not None:
                if seen == shown and after in there:
                    return True
            elif after in here and after not in met:
                met.add(after)
                pending.append(after)
    return False
