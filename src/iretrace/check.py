"""One test on one hypervisor: explore everything, compare with the patient reference, say what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

from iretrace.explore.fair import Ending, endings, loop_of
from iretrace.explore.graph import Edge, Graph, Limits, explore
from iretrace.litmus.test import Reach, Test
from iretrace.verdict import Assumption, CLine, Ledger, Outcome, Result, Step, Trace, Verdict
from iretrace.world.cited import cited, last_writer, of_injected
from iretrace.world.endings import can_exit, explained, how, point
from iretrace.world.knobs import UNKNOWN_KNOBS, Values
from iretrace.world.product import GUEST_LABEL, Point, Product
from iretrace.world.protocol import Hypervisor, View
from iretrace.world.story import Story

TOLD_IN_CAUSE = (
    "nmi_queued",
    "nmi_pending",
    "nmi_injected",
    "nmi_masked",
    "awaiting_iret_completion",
    "irq_pending",
    "irq_injected",
    "exception_pending",
    "int_shadow",
    "smm",
    "smi_pending",
    "init_pending",
)
"""Fields of the view that say why an event waits."""

DOING = {
    "halted": "sleeps",
    "spins": "spins",
    "loops": "loops",
    "shutdown": "is shut down",
    "held": "is held in delivery",
    "kept": "is kept out of guest mode, as the vCPU thread goes in a circle,",
}
"""How a run goes on for ever, by the first word of its ending, in a sentence about the guest."""

COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

KNOB = "knob"
"""The kind of assumption that a value of a disputed rule is."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The way that a trace tells, as the number of each edge among those that leave its state: from the first state on,
    and round the loop at its end. knobs: for which values of the knobs."""

    knobs: int = 0
    stem: tuple[int, ...] = ()
    loop: tuple[int, ...] = ()


NOWHERE = Walk()


@dataclass(slots=True)
class Explored:
    """One exploration, for one value of the knobs."""

    product: Product
    graph: Graph
    endings: list[Ending]
    walk: Walk = NOWHERE


@dataclass(frozen=True, slots=True)
class Run:
    """What came out for one value of the knobs. consulted: those that mattered. unmet: why it may show nothing. walk:
    what its trace tells."""

    result: Result
    consulted: int
    unmet: tuple[str, ...] = ()
    walk: Walk = NOWHERE


def check(
    test: Test,
    vcpu: str,
    host: str,
    hypervisor: Hypervisor,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
    at_once: bool = True,
    walked: Callable[[Walk], None] = lambda _walk: None,
) -> Result:
    """The verdict of a test on a hypervisor, the same for every value of the knobs that mattered, or undetermined.

    at_once: see world.product.Product; False is for tests of that. walked: is told of the way that the trace tells, if
    there is one."""
    began = time.monotonic()
    limits = limits or Limits()
    hypervisor.new_ledger()
    runs: dict[int, Run] = {}
    for knobs in (values := Values()):
        run = runs[knobs] = _run(test, vcpu, host, hypervisor, knobs, limits, progress, at_once)
        values.consulted(knobs, run.consulted)
    used = tuple(
        Assumption(KNOB, name, "machine", "consulted; every value was run")
        for number, name in UNKNOWN_KNOBS.items()
        if any(run.consulted >> number & 1 for run in runs.values())
    )
    ledger = Ledger(hypervisor.statements(), (*hypervisor.assumptions(), *used))
    settled = _settle(runs)
    for knobs, run in runs.items():
        if settled.trace is not None and run.result.trace is settled.trace:
            walked(replace(run.walk, knobs=knobs))
            break
    return replace(settled, ledger=ledger, seconds=time.monotonic() - began)


def told_again(test: Test, vcpu: str, host: str, hypervisor: Hypervisor, result: Result, walk: Walk) -> Result:
    """A result with its trace told by a hypervisor on which the same way leads to the same, through other C.

    ValueError: there is no such way."""
    assert result.trace is not None
    product = Product(test, vcpu, host, hypervisor, walk.knobs, at_once=True)
    first = product.initial()
    stem: Path = [(None, first), *_followed(product, first.target, walk.stem)]
    loop = _followed(product, stem[-1][1].target, walk.loop)
    told = _violated(result, Explored(product, Graph(), []), stem, loop, result.trace.cause)
    return replace(result, trace=told.trace)


def _followed(product: Product, state: Hashable, walk: Sequence[int]) -> Path:
    path: Path = []
    for number in walk:
        edge = next(islice(product.edges(state), number, None), None) if isinstance(state, Point) else None
        if edge is None or not isinstance(state, Point):
            raise ValueError("no such way")
        path.append((state, edge))
        state = edge.target
    return path


def _walk(graph: Graph, stem: Path, loop: Path) -> Walk:
    """What `told_again` can follow."""
    numbers = [
        [one is edge for one, _ in graph.out[graph.number[state]]].index(True)
        for state, edge in (*stem, *loop)
        if state is not None
    ]
    length = len(numbers) - len(loop)
    return Walk(0, tuple(numbers[:length]), tuple(numbers[length:]))


def _settle(runs: dict[int, Run]) -> Result:
    """The common verdict; undetermined, naming the knob, where two values differ.

    A test is vacuous if no value of the knobs shows what it wants to show."""
    first = runs[0].result
    violated = [run.result for run in runs.values() if run.result.verdict is Verdict.VIOLATED]
    if len(violated) == len(runs):
        return first
    if violated:
        return replace(first, verdict=Verdict.UNDETERMINED, reason=_disputed(runs), trace=violated[0].trace)
    for run in runs.values():
        if run.result.verdict is Verdict.UNDETERMINED:
            return run.result
    for reason in runs[0].unmet:
        if all(reason in run.unmet for run in runs.values()):
            return replace(first, verdict=Verdict.UNDETERMINED, reason=f"vacuous: {reason}")
    return first


def _disputed(runs: dict[int, Run]) -> str:
    """Two values of one knob that make the difference. There are such: a run is there because of one more knob."""
    for knobs, run in runs.items():
        for number, name in UNKNOWN_KNOBS.items():
            verdicts = (run.result.verdict, runs.get(knobs | 1 << number, run).result.verdict)
            if (verdicts[0] is Verdict.VIOLATED) != (verdicts[1] is Verdict.VIOLATED):
                given = "".join(f" (given {also})" for n, also in UNKNOWN_KNOBS.items() if knobs >> n & 1)
                return f"{verdicts[0]} if not {name}, {verdicts[1]} if {name}{given}: a disputed rule of the processor"
    raise AssertionError("the verdicts do not differ")


def _run(
    test: Test,
    vcpu: str,
    host: str,
    hypervisor: Hypervisor,
    knobs: int,
    limits: Limits,
    progress: Callable[[int], None] | None,
    at_once: bool,
) -> Run:
    product = Product(test, vcpu, host, hypervisor, knobs, at_once)
    graph = explore(product, limits, progress)
    explored = Explored(product, graph, [])
    result = Result(
        test=test.name,
        vcpu=vcpu,
        host=host,
        hypervisor=hypervisor.name,
        verdict=Verdict.HOLDS,
        exhausted=_exhausted(test, host, graph),
        states=len(graph.states),
        edges=graph.edges,
    )
    if graph.defects:
        at, edge = graph.defects[0]
        stem = _path_to(explored, at, edge)
        explored.walk = _walk(graph, stem, [])
        result = _violated(result, explored, stem, [], edge.defect)
    elif graph.gave_up:
        result = replace(result, verdict=Verdict.UNDETERMINED, reason=f"stopped by {graph.gave_up}")
    else:
        explored.endings = endings(graph, product)
        result = _judged(replace(result, outcomes=_outcomes(explored)), explored)
    return Run(result, product.consulted(), _unmet(explored), explored.walk)


def _judged(result: Result, explored: Explored) -> Result:
    """The verdict of an exploration that met no limit and no defect on the way."""
    for ending in explored.endings:
        cause = _judge(explored, ending)
        if cause:
            return _lasso(result, explored, ending, cause)
    if explored.graph.unmodelled:
        reason = explored.graph.unmodelled[0][1].unmodelled
        return replace(result, verdict=Verdict.UNDETERMINED, reason=reason)
    return result


def _unmet(explored: Explored) -> tuple[str, ...]:
    """What the test wants to see and this exploration did not show."""
    test = explored.product.test
    unmet = []
    if test.reach is not None and not _reached(explored, test.reach):
        unmet.append(f"no state satisfies `reach: {test.reach.text}`")
    seen = {outcome.marks for outcome in _outcomes(explored)}
    for clause in test.clauses:
        if clause.quantifier == "sometimes" and clause.marks not in seen:
            unmet.append(f"no outcome shows `sometimes {' '.join(clause.marks)}`")
    return tuple(unmet)


# Judging. -------------------------------------------------------------------------------------------------------


def _judge(explored: Explored, ending: Ending) -> str:
    """Why an ending is a defect; "" if the reference explains it and the test's clauses hold."""
    product = explored.product
    state = _point(explored, ending.entry)
    says = how(product, explored.graph, ending)
    if not ending.stuck and not ending.retires:
        if not can_exit(product, explored.graph, ending):
            return "the guest holds the CPU: one exception after the other is delivered, and no #VMEXIT can come"
        if not explained(product, explored.graph, ending, says):
            return "no guest instruction ever retires again"
    if not explained(product, explored.graph, ending, says):
        return _unexplained(explored, state, says)
    marks = tuple(product.test.marks[m] for m in state.marks)
    for clause in product.test.clauses:
        if clause.quantifier == "always" and marks != clause.marks:
            return f"`always {' '.join(clause.marks)}` fails: this run ends with {' '.join(marks) or 'no mark'}"
        if clause.quantifier == "never" and marks == clause.marks:
            return f"`never {' '.join(clause.marks)}` fails: this run ends with just these marks"
    return ""


def _unexplained(explored: Explored, state: Point, says: str) -> str:
    product = explored.product
    view = product.hypervisor.view(product.vcpu.private(state.core))
    doing = DOING.get(says.split(" ")[0], says) if says else "goes on"
    host = "and no #VMEXIT is owed" if not product.ticking else "although the host ticks"
    told = [f"{name}={value}" for name, value in asdict(view).items() if name in TOLD_IN_CAUSE and value]
    held = " ".join([*told, *([] if view.gif else ["gif=0"])])
    holds = f"; the hypervisor holds {held}" if held else ""
    event = product.owed_event(state.monitor)
    if event:
        return f"{event} that the processor would deliver never comes: the guest {doing} for ever {host}{holds}"
    return f"the guest {doing} for ever {host}{holds}; {product.say_allowed(state.monitor)}"


def _point(explored: Explored, number: int) -> Point:
    return point(explored.graph, number)


def _reached(explored: Explored, reach: Reach) -> bool:
    """Some state meets the test's `reach:` condition."""
    product = explored.product
    return any(
        _meets(asdict(product.hypervisor.view(private)), reach.terms) for private in product.vcpu.privates.values
    )


def _meets(view: dict[str, int], terms: tuple[tuple[str, str, int], ...]) -> bool:
    return all(COMPARE[operator](view[name], value) for name, operator, value in terms)


def _outcomes(explored: Explored) -> tuple[Outcome, ...]:
    """The outcomes of all endings; without clauses marks are not kept, and only how the runs end is told."""
    product = explored.product
    found = set()
    for ending in explored.endings:
        state = _point(explored, ending.entry)
        marks = tuple(product.test.marks[m] for m in state.marks)
        found.add((marks, how(product, explored.graph, ending).split(" ")[0]))
    return tuple(Outcome(marks, how) for marks, how in sorted(found))


def _exhausted(test: Test, host: str, graph: Graph) -> str:
    kinds: dict[str, int] = {}
    for arrival in test.outside:
        kinds[arrival.kind] = kinds.get(arrival.kind, 0) + 1
    events = ", ".join(f"{count} {kind.upper()}{'s' if count > 1 else ''}" for kind, count in kinds.items())
    all_of_them = "" if graph.gave_up or graph.defects else "all "
    return ", ".join(part for part in (f"{all_of_them}{len(graph.states):,} states", events, host) if part)


# Traces. --------------------------------------------------------------------------------------------------------

Path = list[tuple[Point | None, Edge]]


def _path_to(explored: Explored, at: int, last: Edge | None) -> Path:
    path: Path = [
        (None if number < 0 else _point(explored, number), edge)
        for number, edge in (explored.graph.path(at) if at >= 0 else [])
    ]
    if last is not None:
        path.append((None if at < 0 else _point(explored, at), last))
    return path


def _lasso(result: Result, explored: Explored, ending: Ending, cause: str) -> Result:
    stem = _path_to(explored, ending.entry, None)
    loop: Path = [(_point(explored, number), edge) for number, edge in loop_of(explored.graph, ending)]
    explored.walk = _walk(explored.graph, stem, loop)
    return _violated(result, explored, stem, loop, cause)


def _violated(result: Result, explored: Explored, stem: Path, loop: Path, cause: str) -> Result:
    story = Story(explored.product)
    told = story.tell(stem)
    told_loop = story.tell(loop)
    if stem and stem[-1][1].defect:
        statement = _deciding(explored.product, story, stem, told)
    else:
        statement = _of_ending(explored.product, story, stem)
    return replace(result, verdict=Verdict.VIOLATED, reason=cause, trace=Trace(told, told_loop, cause, statement))


def _deciding(product: Product, story: Story, stem: Path, told: tuple[Step, ...]) -> CLine | None:
    """What to cite for a last step that is a defect: of the guest's, or of the hypervisor's."""
    state, edge = stem[-1]
    if state is not None and edge.label == GUEST_LABEL:
        return cited(product, state, story.writes)
    where = told[-1].where
    return where if isinstance(where, CLine) else last_writer(story.writes, "event_inj")


def _of_ending(product: Product, story: Story, stem: Path) -> CLine | None:
    """What to cite for a run that ends as no processor's does: who declined the event, or what shut the guest down."""
    steps = [state for state, edge in stem if state is not None and edge.label == GUEST_LABEL]
    if steps and product.shuts_down(steps[-1]):
        return of_injected(product, steps[-1], story.writes)
    return story.declined


def view_fields() -> tuple[str, ...]:
    """The names that `reach:` can use."""
    return tuple(asdict(View()))
