"""What patches change: the same tests on the tree before and behind them; what is new, what was there, what is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iretrace.cli.driver import Ran, Request, verdicts
from iretrace.cli.known import mark_known
from iretrace.cli.moved import PLACE
from iretrace.cli.sources import Patchable
from iretrace.cli.stored import Stored
from iretrace.report.summary import Report
from iretrace.verdict import Result, Verdict

IN_THE_TREE = "in-the-tree-before"
"""Instead of the id of a known bug: a defect that no list has, and that the patches did not bring."""

HELD = "; the hypervisor holds "
"""What follows in a cause is how things stand, not what is wrong."""

NAMES_IN_A_REMARK = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """One tree of a review: name, and what came out. in_scope: whether its patches change anything that is modelled.

    rows: rule rows for what they use and nothing answers."""

    name: str
    source: Patchable
    ran: Ran | None
    remarks: tuple[str, ...] = ()
    in_scope: bool = True
    rows: tuple[str, ...] = ()


def review(
    request: Request,
    tree: Patchable,
    progress: Progress,
    stored: Stored | None,
    anew: bool = False,
    each: bool = False,
) -> list[Stage]:
    """The tree as it is, and with the patches: all at once, or one more at a time. InputError as for the patches.

    A stage whose patches change nothing that is modelled behaves as the one before it and is not run."""
    patches = list(request.patches)
    counts = range(1, len(patches) + 1) if each else [len(patches)]
    stages = [Stage("", tree, None)]
    seen = 0
    for count in counts:
        source = tree.patched(patches[:count])
        about = source.about_patches(progress, seen)
        seen = about.hunks
        name = f"{tree.result_name} + {count} of {len(patches)}" if each else tree.result_name
        remarks = about.remarks if not each else (f"{name}: {patches[count - 1][0]}", *about.remarks)
        stages.append(Stage(name, source, None, remarks, about.in_scope, about.rows))
    if not any(stage.in_scope for stage in stages[1:]):
        return stages
    return [
        replace(stage, ran=verdicts(request, stage.source, progress, stored, anew)) if stage.in_scope else stage
        for stage in stages
    ]


def compared(stages: Sequence[Stage]) -> Report:
    """The results of all stages but the first, what was there before each marked as known; the number of results that
    are open, but not because of the patches, is `untouched`."""
    before = stages[0].ran
    assert before is not None, "the tree without patches was run"
    results: list[Result] = []
    untouched: list[Result] = []
    remarks: list[str] = []
    marked = mark_known(before.results)
    reused = 0
    for stage in stages[1:]:
        remarks += stage.remarks
        after = stage.ran
        if after is None:
            remarks.append(f"{stage.name}: changes nothing that is modelled")
            continue
        reused += after.reused
        told = [_marked(old, new) for old, new in zip(marked, after.results, strict=True)]
        named = [replace(result, hypervisor=stage.name) for result in told]
        alike = stage.source.identity() == stages[0].source.identity()
        same = [alike and one == two for one, two in zip(before.same, after.same, strict=True)]
        untouched += [new for new, is_same in zip(named, same, strict=True) if is_same and _open(new)]
        results += named
        remarks += _gone(stage.name, marked, told)
        before, marked = after, told
    rows = list(dict.fromkeys(row for stage in stages for row in stage.rows))
    return Report(results, reused=reused, remarks=list(dict.fromkeys(remarks)), untouched=untouched, rows=rows)


def _open(result: Result) -> bool:
    return result.verdict is Verdict.UNDETERMINED


def _marked(old: Result, new: Result) -> Result:
    """A violation that was there before as known."""
    if new.verdict is Verdict.VIOLATED and old.verdict is Verdict.VIOLATED and defect(old) == defect(new):
        return replace(new, known=old.known or IN_THE_TREE)
    return new


def defect(result: Result) -> str:
    """What is wrong, in words that do not depend on where in a file it is."""
    return PLACE.sub(r"\1", result.reason.partition(HELD)[0])


def _gone(name: str, before: Sequence[Result], after: Sequence[Result]) -> list[str]:
    """A sentence on the defects that the patches repair."""
    gone = [
        f"{new.test} {new.vcpu} {new.host}"
        for old, new in zip(before, after, strict=True)
        if old.verdict is Verdict.VIOLATED and new.verdict is Verdict.HOLDS
    ]
    if not gone:
        return []
    more = f" and {len(gone) - NAMES_IN_A_REMARK} more" if len(gone) > NAMES_IN_A_REMARK else ""
    tests = "test holds" if len(gone) == 1 else "tests hold"
    return [f"{name}: {len(gone)} {tests} that failed before: {', '.join(gone[:NAMES_IN_A_REMARK])}{more}"]
