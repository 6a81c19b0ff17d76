"""`iretrace`: reads the command line, calls the rooms, writes what they say, and ends with the agreed status."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from iretrace.cli.arguments import make_parser
from iretrace.cli.terminal import Progress, only_ascii, wants_color
from iretrace.verdict import InputError, Result, Verdict

if TYPE_CHECKING:
    from iretrace.cli.driver import Request
    from iretrace.cli.sources import Patchable, Source
    from iretrace.cli.stored import Stored
    from iretrace.litmus.test import Test
    from iretrace.report.differences import Differences
    from iretrace.report.summary import Report
    from iretrace.report.terminal import Look

# The rooms are imported where they are used, so that `iretrace --help` is quick.

MAX_PATCH_BYTES = 16 << 20
INDENT = "    "

PATIENCE = (50_000, 20, 20)
"""How many objects the garbage collector lets come before it looks for circles: a search keeps what it makes, and to
look through that again and again takes a tenth of its time."""

UNTOUCHED = "the patches change nothing that is modelled; no test was run"
UNUSED = "no test judges the patches; that is no pass"

CANNOT_BE_BISECTED = 125
"""`git bisect run` leaves such a commit out."""

STOPS_BISECTION = 128
"""A mistake in the command line is the same for every commit."""


class Status(IntEnum):
    """Exit statuses; scripts rely on them."""

    HOLDS = 0
    COUNTEREXAMPLE = 1
    BAD_INPUT = 2
    UNDETERMINED = 3
    NOTHING_IN_SCOPE = 4


def status_of(results: Sequence[Result]) -> Status:
    """One status for many results. Undetermined never passes, and a known defect is still a counterexample."""
    verdicts = {result.verdict for result in results}
    if not verdicts:
        return Status.NOTHING_IN_SCOPE
    if Verdict.VIOLATED in verdicts:
        return Status.COUNTEREXAMPLE
    if Verdict.UNDETERMINED in verdicts:
        return Status.UNDETERMINED
    return Status.HOLDS


def read_patch(name: str) -> list[tuple[str, str]]:
    """(name, text) of each patch in a file, or on standard input for "-": a diff, a mail or a mailbox of a series.

    The text is data: it is applied in memory only.
    """
    from iretrace.linux.mail import patches_in

    shown = "<stdin>" if name == "-" else name
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_PATCH_BYTES + 1)
        else:
            with open(name, "rb") as file:
                content = file.read(MAX_PATCH_BYTES + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_PATCH_BYTES:
        raise InputError(f"{shown}: larger than {MAX_PATCH_BYTES >> 20} MiB; give one patch or one mailbox of patches")
    return patches_in(content, shown)


def look_for(arguments: argparse.Namespace) -> Look:
    """How results look on stdout."""
    from iretrace.report.terminal import Look

    verbose = getattr(arguments, "verbose", False)
    return Look(wants_color(arguments.color, sys.stdout), only_ascii(sys.stdout), verbose)


def progress_of(arguments: argparse.Namespace) -> Progress:
    """What is going on, on standard error."""
    return Progress(sys.stderr, silent=getattr(arguments, "quiet", False))


def request_of(arguments: argparse.Namespace) -> Request:
    """What is asked for. InputError: a patch that cannot be read, a test that there is not."""
    from iretrace.cli.driver import Request
    from iretrace.explore.graph import Limits
    from iretrace.litmus.corpus import select

    if arguments.patch.count("-") > 1:
        raise InputError("check: --patch - twice; standard input can be read once")
    return Request(
        tree=arguments.tree,
        tests=select(arguments.test),
        revision=arguments.revision,
        rev=arguments.rev,
        patches=[patch for name in arguments.patch for patch in read_patch(name)],
        vcpus=arguments.vcpu,
        hosts=[arguments.host] if arguments.host else [],
        rules=arguments.rules,
        options=dict(arguments.option),
        limits=Limits(arguments.max_states, arguments.timeout),
        jobs=arguments.jobs,
    )


def check(arguments: argparse.Namespace) -> int:
    """`iretrace check`."""
    from iretrace.cli.driver import run, source_of
    from iretrace.cli.stored import Stored, cache_directory

    request = request_of(arguments)
    if (arguments.diff or arguments.each) and not request.patches:
        raise InputError("check: --diff and --each are about patches; give --patch, or see iretrace diff --help")
    stored = None if arguments.no_cache else Stored(cache_directory())
    with progress_of(arguments) as progress:
        source = source_of(request, progress)
    if request.patches:
        return check_patches(arguments, request, cast("Patchable", source), stored)
    if arguments.dry:
        return dry(source)
    with progress_of(arguments) as progress:
        report = run(request, source, progress, stored, arguments.all)
    return finish(report, arguments, request.tests, bool(arguments.new_only))


def check_patches(arguments: argparse.Namespace, request: Request, tree: Patchable, stored: Stored | None) -> int:
    """`iretrace check --patch`: what the patches bring, held against the tree without them."""
    from iretrace.cli.driver import scoped
    from iretrace.cli.review import compared, review

    if arguments.dry:
        return dry(tree.patched(request.patches))
    if arguments.diff:
        return diff_patches(arguments, request, tree, stored)
    request, lacking = scoped(request, tree)
    with progress_of(arguments) as progress:
        stages = review(request, tree, progress, stored, arguments.all, arguments.each)
    if stages[0].ran is None:
        return nothing_in_scope([remark for stage in stages for remark in stage.remarks], UNTOUCHED, arguments.format)
    new_only = not arguments.all if arguments.new_only is None else bool(arguments.new_only)
    report = compared(stages)
    if new_only and report.results and not report.judges:
        return nothing_in_scope([*lacking, *report.remarks], UNUSED, arguments.format)
    return finish(replace(report, remarks=(*lacking, *report.remarks)), arguments, request.tests, new_only)


def diff_patches(arguments: argparse.Namespace, request: Request, tree: Patchable, stored: Stored | None) -> int:
    """`iretrace check --patch --diff`."""
    from iretrace.cli.diff import differences

    with progress_of(arguments) as progress:
        patched = tree.patched(request.patches)
        about = patched.about_patches(progress, stored=None if arguments.all else stored)
        if not about.in_scope:
            return nothing_in_scope(about.remarks, UNTOUCHED, "")
        names = (tree.name, patched.name)
        found = differences(request, (tree, patched), names, progress, stored, about.remarks)
    return show_differences(found, arguments)


def diff(arguments: argparse.Namespace) -> int:
    """`iretrace diff`."""
    from iretrace.cli.diff import differences, source_named
    from iretrace.cli.stored import Stored, cache_directory

    arguments.tree, arguments.revision, arguments.rev, arguments.patch = None, "", "", []
    request = request_of(arguments)
    stored = None if arguments.no_cache else Stored(cache_directory())
    with progress_of(arguments) as progress:
        first, second = (source_named(name, request, progress) for name in (arguments.first, arguments.second))
        names = (f"{first.name} ({arguments.first})", f"{second.name} ({arguments.second})")
        found = differences(request, (first, second), names, progress, stored)
    return show_differences(found, arguments)


def show_differences(found: Differences, arguments: argparse.Namespace) -> int:
    """Write what differs; the exit status."""
    from iretrace import __version__
    from iretrace.report.differences import differences_json, differences_text

    if not found.tests:
        return nothing_in_scope((), "no test is about such a vCPU; iretrace tests lists what there is", "")
    if arguments.format not in ("text", "json"):
        raise InputError(f"--diff: there is no {arguments.format} of differences; write --format text or json")
    as_text = arguments.format == "text"
    write(differences_text(found, look_for(arguments)) if as_text else differences_json(found, __version__))
    if any(test.parting or test.turned for test in found.tests):
        return Status.COUNTEREXAMPLE
    return Status.HOLDS if all(test.same for test in found.tests) else Status.UNDETERMINED


def dry(source: Source) -> int:
    """`iretrace check --dry`."""
    rows = source.unanswered()
    write(rows or "Every name that these tests need is answered; nothing to add.\n")
    return Status.UNDETERMINED if rows else Status.HOLDS


def finish(report: Report, arguments: argparse.Namespace, tests: Sequence[Test], new_only: bool) -> int:
    """Show a report; its exit status."""
    if not report.results:
        why = "no test is about such a vCPU; iretrace tests lists what there is"
        return nothing_in_scope(report.remarks, why, arguments.format)
    report = replace(report, kept=not arguments.no_cache)
    if new_only:
        report = report.without_known()
    show(report, arguments, tests)
    return status_of(report.results) if report.results else Status.HOLDS


def nothing_in_scope(remarks: Sequence[str], reason: str, form: str) -> int:
    """Say why nothing was run: that is no pass."""
    from iretrace.cli.formats import nothing

    write(nothing(form, reason))
    for remark in (*remarks, reason):
        print(f"iretrace: {one_line(remark)}", file=sys.stderr)
    return Status.NOTHING_IN_SCOPE


def show(report: Report, arguments: argparse.Namespace, tests: Sequence[Test]) -> None:
    """Write a report in the format that was asked for."""
    from iretrace.cli.formats import FORMATS

    if arguments.format == "text":
        from iretrace.report.text import check_report, short_report

        if getattr(arguments, "quiet", False):
            write(short_report(report, look_for(arguments)))
            return
        write(check_report(report, look_for(arguments), getattr(arguments, "all", True)))
        return
    write(FORMATS[arguments.format](report, tests))
    if arguments.format == "gcc":
        from iretrace.report.gcc import gcc_summary

        sys.stderr.write(gcc_summary(report))


def demo(arguments: argparse.Namespace) -> int:
    """`iretrace demo`."""
    from iretrace.cli.demo import demonstrate

    with progress_of(arguments) as progress:
        text = demonstrate(arguments.tree, look_for(arguments), progress)
    write(text)
    return Status.HOLDS


def mail(arguments: argparse.Namespace) -> int:
    """`iretrace mail`."""
    from iretrace.cli.mail import mail_text

    with Progress(sys.stderr) as progress:
        text = mail_text(arguments.tree, look_for(arguments), progress, arguments.verbose)
    write(text)
    return Status.HOLDS


def show_kept(arguments: argparse.Namespace) -> int:
    """`iretrace show`."""
    from iretrace.cli.show import changelog_of, found_by, remembered
    from iretrace.cli.stored import Stored, cache_directory
    from iretrace.report.summary import Report

    one = remembered(Stored(cache_directory()), arguments.id)
    if arguments.format == "changelog":
        write(changelog_of(one))
        return Status.HOLDS
    show(Report([one.result], kept=True), arguments, ())
    if arguments.format == "text":
        write("".join(f"{one_line(line)}\n" for line in found_by(one)))
    return Status.HOLDS


def reproduce(arguments: argparse.Namespace) -> int:
    """`iretrace reproduce`."""
    from iretrace.cli.show import remembered, reproducer
    from iretrace.cli.stored import Stored, cache_directory

    write(reproducer(remembered(Stored(cache_directory()), arguments.id), arguments.output))
    return Status.HOLDS


def tests(arguments: argparse.Namespace) -> int:
    """`iretrace tests`."""
    from iretrace.litmus.corpus import select
    from iretrace.report.terminal import wrap

    if arguments.outcomes:
        from iretrace.cli.outcomes import outcomes_of

        for test in select(arguments.names):
            write(outcomes_of(test, look_for(arguments)) + "\n")
        return Status.HOLDS
    for test in select(arguments.names):
        about = wrap(" ".join(test.about.split()), INDENT, INDENT)
        write("\n".join([f"{test.name}  ({', '.join(test.vcpus)}; {', '.join(test.hosts)})", *about, ""]))
    return Status.HOLDS


def rules(arguments: argparse.Namespace) -> int:
    """`iretrace rules`."""
    from iretrace.cli.rules import rules_text

    write(rules_text(arguments.names))
    return Status.HOLDS


def revisions(_arguments: argparse.Namespace) -> int:
    """`iretrace revisions`."""
    from iretrace.cli.revisions import revisions_text

    write(revisions_text())
    return Status.HOLDS


def completion(arguments: argparse.Namespace) -> int:
    """`iretrace completion`."""
    from iretrace.cli.manual import COMPLETIONS

    write(COMPLETIONS[arguments.shell]())
    return Status.HOLDS


def print_manual(_arguments: argparse.Namespace) -> int:
    """`iretrace manual`."""
    from iretrace.cli.manual import manual

    write(manual())
    return Status.HOLDS


def run_on_kvm(arguments: argparse.Namespace) -> int:
    """`iretrace run`."""
    from iretrace.cli.live import run_live
    from iretrace.report.live import live_report

    with progress_of(arguments) as progress:
        report = run_live(arguments, progress)
    write(live_report(report, look_for(arguments)))
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.observed:
        return Status.NOTHING_IN_SCOPE
    if any(observed.defect for observed in report.observed):
        return Status.COUNTEREXAMPLE
    unclear = report.broken or any(observed.unclear for observed in report.observed)
    return Status.UNDETERMINED if unclear else Status.HOLDS


COMMANDS = {
    "check": check,
    "diff": diff,
    "show": show_kept,
    "reproduce": reproduce,
    "run": run_on_kvm,
    "demo": demo,
    "mail": mail,
    "tests": tests,
    "rules": rules,
    "revisions": revisions,
    "completion": completion,
    "manual": print_manual,
}


def write(text: str) -> None:
    """Write to stdout; a reader that has seen enough (`| head`) is no error, and what its encoding lacks is escaped.
    InputError: a full disk and the like."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open until the process ends)
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"standard output: {error.strerror}") from None


def out_of_scope(error: InputError) -> bool:
    """Whether the input is sound but holds nothing that Iretrace is about."""
    from iretrace.linux.mail import NoPatch
    from iretrace.linux.tree import NothingInScope

    return isinstance(error, NothingInScope | NoPatch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status."""
    gc.set_threshold(*PATIENCE)
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = argparse.Namespace()
    try:
        parsed = make_parser().parse_args(arguments)
        return _exit_status(int(COMMANDS[parsed.command](parsed)), parsed)
    except InputError as error:
        print(f"iretrace: {one_line(str(error))}", file=sys.stderr)
        status = Status.NOTHING_IN_SCOPE if out_of_scope(error) else Status.BAD_INPUT
        _write_refusal(str(error), status, parsed)
        if not vars(parsed) and "--bisect" in arguments:
            return STOPS_BISECTION
        return _exit_status(status, parsed)
    except KeyboardInterrupt:
        print("iretrace: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("IRETRACE_DEBUG") == "1":
            traceback.print_exc()
        what = one_line(f"{type(error).__name__}: {error}")
        print(f"iretrace: {what}; this is a bug of iretrace (IRETRACE_DEBUG=1 shows where)", file=sys.stderr)
        return _exit_status(Status.BAD_INPUT, parsed)


def _exit_status(status: int, parsed: argparse.Namespace) -> int:
    """The exit status that the user asked for: `git bisect run` wants 125 for what cannot be judged."""
    if getattr(parsed, "bisect", False) and status not in (Status.HOLDS, Status.COUNTEREXAMPLE):
        return CANNOT_BE_BISECTED
    return status


def _write_refusal(reason: str, status: Status, parsed: argparse.Namespace) -> None:
    """What a format has for input that cannot be judged, if it has anything."""
    from iretrace.cli.formats import nothing, refused

    form = getattr(parsed, "format", "")
    write(nothing(form, reason) if status is Status.NOTHING_IN_SCOPE else refused(form, reason))


def one_line(text: str) -> str:
    """Text that may come from a tree, for a terminal: one line, no control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


if __name__ == "__main__":
    sys.exit(main())
