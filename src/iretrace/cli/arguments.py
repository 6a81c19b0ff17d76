"""The command line as argparse sees it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from iretrace import __version__
from iretrace.verdict import InputError

STATUS = "exit status: 0 all hold, 1 a counterexample, 2 bad usage or input, 3 undetermined, 4 nothing in scope"

CHECK = """\
Runs litmus tests against the event path of a Linux source tree, which is read and executed
from source; nothing of the tree is built or obeyed. TREE is the top directory of the tree, its
tarball (.tar.xz, .tar.gz, .tar.zst) or Debian's linux-source package (.deb).
Without TREE the tests run on the KVM that is built in."""

RUN = """\
Runs litmus tests on a real kvm_amd: of a Debian kernel under QEMU's emulated SVM, or of
this machine. Each test runs at random moments, and with an event placed before each of its
instructions. What comes out is held against what the processor alone can show, and with
--compare TREE also against what the model says that this very kernel does."""

ON = "qemu[:6.1|6.12|7.3|FILE.deb|DIR] (default qemu:6.1), qemu-machine for QEMU without KVM, or host"

DIFF = """\
Compares the behaviour of two hypervisors: each test's verdict, defects and outcomes, and by a
search under equal guests and equal arrivals the first step at which the two part."""

SHOW = """\
Tells a kept result again, in any format, without running anything. changelog is a paragraph
as the kernel's changelogs have it: the scenario in steps, and what the processor does."""

REPRODUCE = """\
Writes what shows a result again: the litmus file, a script with the command, the patches that
the tree was given, and where any KVM can run the guest a C program that looks for the defect."""

DEMO = """\
Tells one bug from the test to the counterexample: what the processor alone can show, what KVM
made of it in 6.1 and in 6.12, and what all tests find. With TREE: on that kernel."""

TESTS = """\
Lists the shipped tests, or your own, each with its vCPU kinds, its hosts and what it is about.
With --outcomes: everything that the processor alone can show."""

RULES = """\
Prints the rules of the processor, each with the section of the manual that it rests on and how
it is known. docs/rules.md has them as a page."""

MAIL = """\
Puts each claim that KVM's x86 maintainer made in a mail of June 2023 to a kernel, as a search
through every run of a few guests. docs/the-mail.md has the answers for three kernels."""

COMPLETION = """\
Writes completion of commands, options, tests and kinds to standard output, e.g.
iretrace completion bash > ~/.local/share/bash-completion/completions/iretrace"""

MANUAL = """\
Writes the manual page to standard output: iretrace manual | man -l -"""

REVISIONS = """\
Lists the revisions of the KVM that is built in, and each difference of behaviour between them."""

EXAMPLES = """\
examples:
  iretrace check
  iretrace check ~/src/linux
  iretrace check ~/src/linux --patch 0001-fix.patch --test nmi-complete-then-spin
  b4 am -o - MESSAGE-ID | iretrace check ~/src/linux --patch -"""


MAX_JOBS = 8
JOBS = f"default: one for each CPU, at most {MAX_JOBS}"

FORMATS = ("text", "gcc", "json", "ktap", "junit", "sarif", "b4")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Bad usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds, 0 for no limit")
    return seconds


# argparse names the type in its messages: "invalid number value".
_at_least_one.__name__ = "number"
_seconds.__name__ = "seconds"


def _processes() -> int:
    """One for each CPU that may be used."""
    return min(len(os.sched_getaffinity(0)), MAX_JOBS)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=VALUE")
    return name, value


def make_parser() -> argparse.ArgumentParser:
    """The parser of `iretrace`."""
    parser = Parser(
        prog="iretrace",
        description="Checks KVM's event injection on AMD against the processor that it imitates.",
        epilog=STATUS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"iretrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_check(commands.add_parser("check", help="run litmus tests on a Linux tree", allow_abbrev=False))
    _add_diff(diff := commands.add_parser("diff", help="what two hypervisors do differently", allow_abbrev=False))
    _add_kept(
        show := commands.add_parser("show", help="a result of an earlier check, told again", allow_abbrev=False),
        commands.add_parser("reproduce", help="files that show a result again", allow_abbrev=False),
    )
    demo = commands.add_parser("demo", help="a bug of KVM 6.1, step by step", allow_abbrev=False)
    demo.description = DEMO
    demo.add_argument("tree", metavar="TREE", nargs="?", type=Path, help="Linux source; default: the built-in KVM")
    tests = commands.add_parser("tests", help="list the litmus tests", allow_abbrev=False)
    tests.description = TESTS
    tests.add_argument("names", metavar="NAME|FILE|DIR", nargs="*", help="only these")
    tests.add_argument("--outcomes", action="store_true", help="what the patient reference allows")
    _add_run(run := commands.add_parser("run", help="run litmus tests on a real KVM", allow_abbrev=False))
    rules = commands.add_parser("rules", help="list the processor's rules and their sources", allow_abbrev=False)
    rules.description = RULES
    rules.add_argument("names", metavar="NAME", nargs="*", help="only these")
    mail = commands.add_parser("mail", help="a maintainer's mail, checked claim by claim", allow_abbrev=False)
    mail.description = MAIL
    mail.add_argument("tree", metavar="TREE", nargs="?", type=Path, help="Linux source; default: the built-in KVM")
    mail.add_argument("--verbose", action="store_true", help="the run behind every answer")
    completion = commands.add_parser("completion", help="completion for a shell", allow_abbrev=False)
    completion.description = COMPLETION
    completion.formatter_class = argparse.RawDescriptionHelpFormatter
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which one")
    manual = commands.add_parser("manual", help="the manual page", allow_abbrev=False)
    manual.description = MANUAL
    revisions = commands.add_parser("revisions", help="what the revisions of the built-in KVM are", allow_abbrev=False)
    revisions.description = REVISIONS
    for command in (diff, show, demo, tests, rules, run, mail):
        _add_color(command)
    return parser


def _add_kept(show: argparse.ArgumentParser, reproduce: argparse.ArgumentParser) -> None:
    show.description, reproduce.description = SHOW, REPRODUCE
    show.add_argument("id", metavar="ID", help="as check prints it, or the beginning of it; or the name of a test")
    show.add_argument("--format", choices=(*FORMATS, "changelog"), default="text", help="default: text")
    show.add_argument("--verbose", action="store_true", help="every assumption and step")
    reproduce.add_argument("id", metavar="ID", help="as for show")
    reproduce.add_argument("--output", metavar="DIR", type=Path, help="write the files there; default: print the test")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = CHECK
    parser.epilog = f"{EXAMPLES}\n\n{STATUS}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("tree", metavar="TREE", nargs="?", type=Path, help="a Linux source directory, tarball or linux-source .deb")
    add("--rev", metavar="REV", default="", help="TREE is a git repository: this revision; nothing is checked out")
    add("--revision", metavar="NAME", default="", help="without TREE: of the built-in KVM; default: the newest")
    add("--patch", metavar="FILE|-", action="append", default=[], help="apply a patch, in memory; several in order")
    _add_tasks(parser)
    add("--dry", action="store_true", help="only list what the tree leaves open, as rows for --rules")
    add("--format", choices=FORMATS, default="text", help="default: text; docs/formats.md explains them")
    add("--bisect", action="store_true", help="exit status for git bisect run: 125 for what cannot be judged")
    add("--all", action="store_true", help="run every test anew, whatever is known, and tell each in full")
    add(
        "--new-only",
        action=argparse.BooleanOptionalAction,
        help="leave known defects out of the output and of the exit status (default with --patch)",
    )
    add("--diff", action="store_true", help="with --patch: what changes in behaviour, as `iretrace diff` tells it")
    add("--each", action="store_true", help="judge each patch of a series on top of those before it")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument(
        "--quiet", action="store_true", help="no progress; text: only what does not hold, a line each"
    )
    how_much.add_argument("--verbose", action="store_true", help="every assumption and statement, not only what tells")
    _add_color(parser)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    """What to run, and how far."""
    add = parser.add_argument
    add("--test", metavar="NAME|FILE|DIR", action="append", default=[], help="default: every shipped test")
    add("--vcpu", metavar="KIND", action="append", default=[], help="vCPU kind, e.g. sev-es; default: the test's own")
    add("--host", choices=["tickless", "ticking"], help="default: the test's own, else tickless")
    add("--rules", metavar="FILE", action="append", default=[], type=Path, help="rows for what the tree leaves open")
    add("--option", metavar="NAME=VALUE", action="append", default=[], type=_option, help="a CONFIG_* or parameter")
    add("--jobs", metavar="N", type=_at_least_one, default=_processes(), help=f"processes ({JOBS})")
    add("--max-states", metavar="N", type=_at_least_one, default=2_000_000, help="give up beyond (default 2,000,000)")
    add("--no-cache", action="store_true", help="reuse and keep no results")
    add("--timeout", metavar="S", type=_seconds, default=0.0, help="seconds for each test; 0: no limit (default)")


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.description = DIFF
    parser.epilog = "exit status: 0 no difference, 1 a difference, 2 bad usage or input, 3 not all could be compared"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("first", metavar="A", help="a tree as for check, REPOSITORY@REV, or a revision of the built-in KVM (v6.1)")
    add("second", metavar="B", help="the same")
    _add_tasks(parser)
    add("--format", choices=("text", "json"), default="text", help="default: text")
    add("--verbose", action="store_true", help="every step of the way to a difference")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = RUN
    parser.epilog = STATUS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("tests", metavar="NAME|FILE|DIR", nargs="*", help="default: every shipped test")
    add("--on", metavar="WHERE", default="qemu", help=ON)
    add("--repeat", metavar="N", type=_at_least_one, default=10, help="runs at random moments (default 10)")
    add("--seed", metavar="N", type=_at_least_one, default=1, help="of the random moments (default 1)")
    add("--kvm", metavar="DIR", type=Path, help="with your own kvm.ko and kvm-amd.ko, built for that kernel")
    add("--build", metavar="TREE", type=Path, help="with the KVM of this source: executes the tree's build")
    add("--compare", metavar="TREE", type=Path, help="the source of this kernel, for what the model says of it")
    add("--jobs", metavar="N", type=_at_least_one, default=_processes(), help=f"with --compare: processes ({JOBS})")


def _add_color(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="default: auto")
