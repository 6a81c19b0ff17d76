"""`iretrace show --format changelog`: a finding as a paragraph for a changelog, in the style that KVM x86 asks for.

Imperative, functions as function_name(), manuals by title, the scenario as numbered steps. What the patch does about it
is for its author to add.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from iretrace.report.terminal import Look
from iretrace.verdict import CLine, InputError, Result, Step, Verdict

WIDTH = 75
LOOK = Look(ascii_only=True)
ARRIVES = " arrives"
"""Behind an event's name, where its sender begins."""

DECLINES = "declines the waiting "
"""How a step begins in which a statement examined a waiting event and declined it."""

ENCRYPTED = "sev-es"
"""How the names of kinds of encrypted guests begin."""

MANUALS = {"AMD64 APM vol. 2": 'AMD\'s APM volume 2, "System Programming"'}
"""Manuals as the rules cite them, and their titles."""


def changelog(result: Result, about: str, sources: Mapping[str, str], command: str) -> str:
    """The text. about: what the test is about. sources: rule -> where it is from. InputError: nothing is violated."""
    if result.verdict is not Verdict.VIOLATED or result.trace is None:
        raise InputError(f"{result.test}: {result.verdict}; a changelog is for a defect, this result shows none")
    trace = result.trace
    where = f"{result.hypervisor}, a {result.vcpu} vCPU, a {result.host} host"
    paragraphs = [_filled(f"Fix a defect in which {_lower(trace.cause)}."), _filled(f"The scenario ({where}):")]
    paragraphs.append("\n".join(_scenario(trace.stem, trace.loop)))
    if trace.cited is not None:
        text = f": {trace.cited.text}" if trace.cited.text else ""
        declines = any(step.where == trace.cited and DECLINES in step.what for step in (*trace.stem, *trace.loop))
        does = "examines the event last" if declines else "decides it"
        paragraphs.append(_filled(f"{_function(trace.cited)} in {trace.cited.path} {does}{text}"))
    manuals = list(_manuals((*trace.stem, *trace.loop), sources, result.vcpu.startswith(ENCRYPTED)))
    if manuals:
        paragraphs.append(_filled(f"What the processor does in these steps is in {'; '.join(manuals)}."))
    paragraphs.append(_filled(f"The test: {' '.join(about.split())}"))
    paragraphs.append(f"Reproducer:\n\n  {LOOK.clean(command)}")
    return "\n\n".join(paragraphs) + "\n"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _filled(text: str) -> str:
    return "\n".join(textwrap.wrap(LOOK.clean(text), WIDTH, break_on_hyphens=False, break_long_words=False))


def _function(line: CLine) -> str:
    return f"{line.function}()" if line.function else f"{line.path}:{line.line}"


def _scenario(stem: Sequence[Step], loop: Sequence[Step]) -> Iterator[str]:
    """Numbered steps; what one function of KVM does in a row is one step."""
    told: list[tuple[str, str]] = []
    for number, step in enumerate((*stem, *loop)):
        who, what = _told(step)
        if number >= len(stem):
            what += ", for ever"
        if told and what and _goes_on(who, told[-1][0]):
            told[-1] = (told[-1][0], f"{told[-1][1]}; {what}")
        else:
            told.append((who, what))
    for number, (who, what) in enumerate(told, 1):
        start = f"  {number}. "
        text = LOOK.clean(f"{who}: {what}" if who else what)
        yield "\n".join(
            textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
        )


def _goes_on(who: str, before: str) -> bool:
    """Whether a step is of the function, or of the sender, of the step before it."""
    return (who == before and who.endswith("()")) or (who != "" and before == f"{who}{ARRIVES}")


def _told(step: Step) -> tuple[str, str]:
    """Who, and what it does; a line of C as a clause."""
    if isinstance(step.where, CLine) and step.actor in ("KVM", "outside"):
        text = step.what.removesuffix("{").strip().rstrip(";")
        if step.actor == "KVM":
            return _function(step.where), text
        who, _, what = text.partition(": ")
        return (who, what) if what else ("", text)
    actors = {"outside": "", "KVM": "KVM", "cpu": "the CPU"}
    return actors.get(step.actor, f"the {step.actor}"), step.what


def _manuals(steps: Sequence[Step], sources: Mapping[str, str], encrypted: bool) -> Iterator[str]:
    """The sources of the processor's rules that the steps name: each manual with the titles of its sections. Of a rule
    that is about all guests, those on encrypted ones are for these."""
    titles: dict[str, dict[str, None]] = {}
    for step in steps:
        if isinstance(step.where, str) and step.actor in ("cpu", "guest"):
            manual, _, sections = sources.get(step.where.partition(":")[0], "").partition(", ")
            for section in sections.split(";"):
                if encrypted or "SEV-ES" not in section:
                    titles.setdefault(manual, {}).setdefault(section.strip())
    for manual, sections_of in titles.items():
        if manual:
            told = ", ".join(f'"{section}"' for section in sections_of if section)
            yield f"{MANUALS.get(manual, manual)}{': ' if told else ''}{told}"
