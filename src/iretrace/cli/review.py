"""What patches change: the same tests on the tree before and behind them; what is new, what was there, what is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from iretrace.cli.driver import Begun, Ran, Request, begun, finished, prepared
from iretrace.cli.known import mark_known
from iretrace.cli.meanwhile import begun_and_opened, looking
from iretrace.cli.moved import PLACE
from iretrace.cli.sources import AboutPatches, Patchable
from iretrace.cli.stored import Stored, keeps
from iretrace.cli.workers import Aside
from iretrace.report.summary import Report
from iretrace.verdict import Result, Verdict

IN_THE_TREE = "in-the-tree-before"
"""Instead of the id of a known bug: a defect that no list has, and that the patches did not bring."""

HELD = "; the hypervisor holds "
"""What follows in a cause is how things stand, not what is wrong."""

STOPPED = "stopped by"
"""How the reason of a search begins that a limit ended: behind it could be anything."""

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
    sources = [tree.patched(patches[:count]) for count in counts]
    unpatched = prepared(request, tree, stored, anew)
    with looking(unpatched) as aside:
        for source in sources:
            progress(f"reading {source.name}")
            source.read()
        unpatched = replace(unpatched, kept=aside.result())
    kept = None if anew else stored
    look = partial(_about, sources, kept)
    is_quick = all(source.is_quick(kept) for source in sources)
    abouts = cache(look if is_quick else Aside(look).result)
    ran: list[Ran | None] = []
    for number, source in enumerate((tree, *sources)):
        opens = number == 1 and (not is_quick or abouts()[0].in_scope)  # one tree only: what is opened stays in memory
        begin = begun_and_opened if opens else begun
        one = begin(request, source, progress, stored, anew) if number else unpatched
        if one.missing() and not _is_touched(one, ran):
            judged = abouts()[number - 1 : number] if number else abouts()
            if not any(about.in_scope for about in judged):
                ran.append(None)
                continue
        ran.append(finished(one, progress))
    stages = [Stage("", tree, ran[0])]
    for count, source, about, one_ran in zip(counts, sources, abouts(), ran[1:], strict=True):
        name = f"{tree.result_name} + {count} of {len(patches)}" if each else source.name
        remarks = about.remarks if not each else (f"{name}: {patches[count - 1][0]}", *about.remarks)
        stages.append(Stage(name, source, one_ran if about.in_scope else None, remarks, about.in_scope, about.rows))
    return stages


def _is_touched(begun: Begun, ran: Sequence[Ran | None]) -> bool:
    """Whether it is plain that the patches change what some test uses: its result on the tree before has been kept, and
    does not hold here."""
    before = ran[-1] if ran else None
    if before is None or begun.stored is None or begun.anew:
        return False
    return any(keeps(before.results[number]) for number in begun.missing())


def _about(sources: Sequence[Patchable], stored: Stored | None) -> list[AboutPatches]:
    """Of each source what its patches change that are not those of the one before it."""
    found: list[AboutPatches] = []
    for source in sources:
        found.append(source.about_patches(lambda _text: None, found[-1].hunks if found else 0, stored))
    return found


@dataclass(frozen=True, slots=True)
class Judged:
    """The results of a stage, those that were violated before marked as known. untouched: the undetermined ones that
    used nothing that its patches change; as_before: those that are so in just the same way without them. judges:
    whether any test used what they change."""

    results: Sequence[Result]
    untouched: Sequence[Result]
    as_before: Sequence[Result]
    judges: bool


def compared(stages: Sequence[Stage]) -> Report:
    """The results of all stages but the first, each held against the one before it."""
    before = stages[0].ran
    assert before is not None, "the tree without patches was run"
    results: list[Result] = []
    judged: list[Judged] = []
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
        judged.append(_judged(marked, named, same))
        results += named
        remarks += [*_gone(stage.name, marked, told), *_unclear(stage.name, judged[-1])]
        before, marked = after, told
    return Report(
        results,
        reused=reused,
        remarks=list(dict.fromkeys(remarks)),
        untouched=[result for one in judged for result in one.untouched],
        as_before=[result for one in judged for result in one.as_before],
        rows=list(dict.fromkeys(row for stage in stages for row in stage.rows)),
        judges=any(one.judges for one in judged),
    )


def _judged(before: Sequence[Result], after: Sequence[Result], same: Sequence[bool]) -> Judged:
    """What is as undetermined as before says nothing against the patches, but nothing for them either: it is left out
    only where at least one other test that used what they change has a verdict."""
    untouched = [new for new, is_same in zip(after, same, strict=True) if is_same and _open(new)]
    touched = [(old, new) for old, new, is_same in zip(before, after, same, strict=True) if not is_same]
    has_verdict = any(not _open(new) for _, new in touched)
    as_before = [new for old, new in touched if has_verdict and _open(new) and _as_open(old, new)]
    return Judged(after, untouched, as_before, bool(touched))


def _open(result: Result) -> bool:
    return result.verdict is Verdict.UNDETERMINED


def _as_open(old: Result, new: Result) -> bool:
    """Whether both are undetermined in the same way: for the same reason, with the same defect where a value of a
    disputed rule makes one, and with the same outcomes. What a limit ended is never the same."""
    return _open(old) and _told(old) == _told(new) and not new.reason.startswith(STOPPED)


def _told(result: Result) -> tuple[object, ...]:
    cause = result.trace.cause if result.trace is not None else ""
    return (*map(_anywhere, (result.reason, cause)), result.outcomes)


def _marked(old: Result, new: Result) -> Result:
    """A violation that was there before as known."""
    if new.verdict is Verdict.VIOLATED and old.verdict is Verdict.VIOLATED and defect(old) == defect(new):
        return replace(new, known=old.known or IN_THE_TREE)
    return new


def defect(result: Result) -> str:
    """What is wrong, in words that do not depend on where in a file it is."""
    return _anywhere(result.reason)


def _anywhere(reason: str) -> str:
    """A reason without lines of files and without how things stand."""
    return PLACE.sub(r"\1", reason.partition(HELD)[0])


def _gone(name: str, before: Sequence[Result], after: Sequence[Result]) -> list[str]:
    """A sentence on the defects that the patches repair."""
    gone = [
        new
        for old, new in zip(before, after, strict=True)
        if old.verdict is Verdict.VIOLATED and new.verdict is Verdict.HOLDS
    ]
    tests = "test holds" if len(gone) == 1 else "tests hold"
    return [f"{name}: {len(gone)} {tests} that failed before: {_names(gone)}"] if gone else []


def _unclear(name: str, judged: Judged) -> list[str]:
    """Sentences on what the tests do not say about the patches."""
    if not judged.judges:
        return [f"{name}: none of these tests uses what the patches change"]
    count = len(judged.as_before)
    tests, do = ("test is", "does") if count == 1 else ("tests are", "do")
    told = f"{name}: {count} {tests} as undetermined as without the patches, and {do} not count: "
    return [told + _names(judged.as_before)] if count else []


def _names(results: Sequence[Result]) -> str:
    more = f" and {len(results) - NAMES_IN_A_REMARK} more" if len(results) > NAMES_IN_A_REMARK else ""
    return ", ".join(f"{one.test} {one.vcpu} {one.host}" for one in results[:NAMES_IN_A_REMARK]) + more
