"""docs/the-mail.md: the mail's claims with their answers on several kernels, for a reader who knows neither of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from iretrace.cli.mail import Answers, run_of
from iretrace.litmus.corpus import select, source_text
from iretrace.mail import CLAIMS, SPIN, Answer, Claim
from iretrace.report.terminal import Look

HEAD = """\
# A maintainer's mail, checked claim by claim

In June 2023 KVM's x86 maintainer answers a patch for encrypted guests on the KVM mailing list ("Re: [PATCH kernel v5
5/6] KVM: SEV: Enable data breakpoints in SEV-ES"). He writes that he has dug through this code more than most and
still gets things wrong. He is corrected on two points, and while he answers he finds a real bug: an NMI that a guest
is ready for may never be delivered. Debian 12's kernel still has it.

This page is that mail, claim by claim, each put to KVM as it is in three of Debian's kernels. **No answer is written
by hand.** Each is a search through every run of a few tiny guests, with every order of events and every interleaving
of other CPUs, on the kernel's own C, executed statement by statement from its source. *True* and *false* mean that
everything was looked at; *true only if* names what the answer hangs on, and it was looked at what happens without
that. Tests hold the page against the kernels.

## What it is about

A processor that takes an NMI, the interrupt of watchdogs and profilers, holds back the next one until the handler has
executed IRET. A hypervisor that injects NMIs has to imitate that, so it must find out when the handler is through. If
the guest's registers are encrypted (SEV-ES), it cannot see the IRET. So the guest says it: NMI_COMPLETE, a request
through a page of memory that both share (the GHCB). This is the guest that most claims are asked of, all of it:

"""

READING = """\
## The runs, step by step

Where the answer is a run that goes wrong, here it is, on the built-in KVM as of Linux 6.1 (`iretrace mail TREE` shows
the same with the lines of your kernel). *pend* counts the NMIs that wait, *mask* is 1 while KVM holds NMIs back
because one is being served, *inj* is 1 while one is being injected; a dot means that nothing has changed. *outside*
is another CPU that sends an NMI, in four steps. The step marked \u221e repeats for ever: nobody owes anything any
more, and the NMI that waits is never taken.
"""

TAIL = """\
## Ask it yourself

    iretrace mail                # every claim, on the KVM that is built in, as of 6.1, 6.12 and 7.3; no kernel needed
    iretrace mail TREE           # on your Linux tree, with the place in its C that shows each answer
    iretrace mail --verbose      # the run behind every answer
    iretrace check TREE          # not only the mail: every shipped test

[The tests](litmus.md), [the bugs that they show](bugs.md), [how it works](design.md).
"""

NUMBER = re.compile(r"(\w+\.py):\d+")

SHORT = {"does not arise": "no such attempt"}


def page(columns: Sequence[tuple[str, Answers]], runs: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The page. columns: hypervisors by name. runs: a claim's name and the lines of the run that is shown for it."""
    program = source_text(select([SPIN])[0]).rstrip()
    parts = [f"{HEAD}```litmus\n{program}\n```\n", _glance(columns)]
    lines = [answer_lines(name, answers) for name, answers in columns]
    for number, claim in enumerate(CLAIMS):
        said = "\n".join(column[number] for column in lines)
        parts.append(f"## {number + 1}. {claim.says}\n\n{_context(claim)}\n\n{said}\n")
    parts.append(READING)
    for name, run in runs:
        number, says = next((n, claim.says) for n, claim in enumerate(CLAIMS, 1) if claim.name == name)
        text = "\n".join(run)
        parts.append(f"### {number}. {says}\n\n```\n{text}\n```\n")
    return "\n".join([*parts, TAIL])


def answer_lines(name: str, answers: Answers) -> list[str]:
    """A line of the page for every claim: what one hypervisor says to it. Without line numbers, which move."""
    lines = []
    for _, answer in answers:
        where = f" (`{answer.cited.function}()`)" if answer.cited is not None else ""
        lines.append(f"- {name}: **{answer.word}**. {answer.because[:1].upper()}{answer.because[1:]}{where}")
    return lines


def run_lines(answer: Answer) -> list[str]:
    """The run behind an answer, as a table. Without line numbers, which move."""
    head, *rows = run_of(answer, Look())
    columns = head.index("pend")
    named = (NUMBER.sub(r"\1", row[:columns]).ljust(columns) for row in rows)
    return [head, *((name + row[columns:]).rstrip() for name, row in zip(named, rows, strict=True))]


def _context(claim: Claim) -> str:
    asked = ", ".join(f"[`{test}`](../src/iretrace/litmus/corpus/{test}.litmus)" for test in claim.tests)
    return f"*{claim.by}.* {claim.means}\n\nAsked of {asked}."


def _glance(columns: Sequence[tuple[str, Answers]]) -> str:
    """The table of all answers in a word each."""
    names = [name for name, _ in columns]
    rows = ["| | claim | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    for number, claim in enumerate(CLAIMS):
        words = [answers[number][1].word for _, answers in columns]
        cells = " | ".join(SHORT.get(word, word.removeprefix("true ")) for word in words)
        rows.append(f"| {number + 1} | {claim.says} | {cells} |")
    return "## At a glance\n\n" + "\n".join(rows) + "\n"
