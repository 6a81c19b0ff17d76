"""Can this happen? A state of some run that meets a condition, told as steps; or the list of what was exhausted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iretrace.explore.graph import Graph, Limits, explore
from iretrace.litmus.test import Test
from iretrace.machine.cpu import CODE_SIZE, OP_SHOW
from iretrace.machine.vmcb import Vmcb
from iretrace.verdict import CLine, Step
from iretrace.world.core import Phase
from iretrace.world.endings import point
from iretrace.world.knobs import Values
from iretrace.world.product import Product
from iretrace.world.protocol import Cause, Hypervisor, View
from iretrace.world.story import Story


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A state of a run, as far as a condition may look: the hypervisor's view, the VMCB, and who holds the CPU."""

    view: View
    vmcb: Vmcb
    phase: Phase
    exited: bool
    """A #VMEXIT has just happened, and nothing was done about it yet."""
    looks_at: int = -1
    """What the guest is about to look at (`show rax`), or -1."""


Condition = Callable[[Glimpse], bool]


@dataclass(frozen=True, slots=True)
class Sought:
    """What a search came to.

    met: how many states meet the condition, of so many in all. steps: the shortest way to the first of them. open: why
    "none" says nothing: a limit, or something that is not modelled; "" if everything was looked at.
    """

    met: int
    states: int
    steps: tuple[Step, ...] = ()
    open: str = ""

    @property
    def cited(self) -> CLine | None:
        """The last statement of the hypervisor on the way there."""
        lines = [step.where for step in self.steps if isinstance(step.where, CLine) and step.actor == "KVM"]
        return lines[-1] if lines else None


def seek(
    test: Test, vcpu: str, host: str, hypervisor: Hypervisor, condition: Condition, limits: Limits | None = None
) -> Sought:
    """Look at every state of every run, for every value of the disputed rules that matters, defects or not."""
    states = 0
    for knobs in (values := Values()):
        product = Product(test, vcpu, host, hypervisor, knobs)
        graph = explore(product, limits or Limits(), stop_at_defect=False)
        states += len(graph.states)
        found = _found(product, graph, condition)
        if found.met or found.open:
            return found
        values.consulted(knobs, product.consulted())
    return Sought(0, states)


def _found(product: Product, graph: Graph, condition: Condition) -> Sought:
    known: dict[int, bool] = {}
    met = []
    for number in range(len(graph.states)):
        core = point(graph, number).core
        if core not in known:
            known[core] = condition(_glimpse(product, core))
        if known[core]:
            met.append(number)
    if met:
        path = [(None if before < 0 else point(graph, before), edge) for before, edge in graph.path(met[0])]
        return Sought(len(met), len(graph.states), Story(product).tell(path))
    unmodelled = graph.unmodelled[0][1].unmodelled if graph.unmodelled else ""
    return Sought(0, len(graph.states), open=graph.gave_up or unmodelled)


def _glimpse(product: Product, core: int) -> Glimpse:
    vcpu = product.vcpu
    phase, cause = vcpu.core(core)[:2]
    exited = phase == Phase.HOST and cause == Cause.VMEXIT
    view = product.hypervisor.view(vcpu.private(core))
    return Glimpse(view, vcpu.vmcb(core), Phase(phase), exited, _looks_at(product, core))


def _looks_at(product: Product, core: int) -> int:
    machine, cpu = product.vcpu.machine, product.vcpu.cpu(core)
    runs = product.vcpu.core(core).phase == Phase.GUEST and cpu.event_inj == 0 and cpu.rip < CODE_SIZE
    return cpu.rax if runs and machine.ops[cpu.rip] == OP_SHOW else -1
