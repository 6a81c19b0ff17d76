"""`iretrace show` and `iretrace reproduce`: results of earlier checks, told again without running anything."""

from __future__ import annotations

import re
from pathlib import Path

from iretrace.cli.known import mark_known
from iretrace.cli.reproduce import program, reason_for_no_program
from iretrace.cli.stored import Remembered, Stored
from iretrace.litmus.parse import parse
from iretrace.report.changelog import changelog
from iretrace.report.summary import ID_DIGITS, result_id
from iretrace.subset import RULES
from iretrace.verdict import InputError

_ID = re.compile(rf"[0-9a-f]{{4,{ID_DIGITS}}}")


def remembered(stored: Stored, wanted: str) -> Remembered:
    """The kept result with this id (or the beginning of it), or the newest one of the test of this name.

    InputError: there is none, or more than one id begins so."""
    found = stored.by_id(wanted) if _ID.fullmatch(wanted) else []
    if len(found) > 1:
        ids = ", ".join(result_id(one.result) for one in found[:4])
        raise InputError(f"{wanted}: {len(found)} results begin so: {ids}; write more digits")
    if not found:
        found = stored.by_test(wanted)
    if not found:
        raise InputError(f"{wanted!a}: no such result is kept; iretrace check prints the ids, test names do as well")
    one = found[0]
    (marked,) = mark_known([one.result])
    return one._replace(result=marked)


def changelog_of(one: Remembered) -> str:
    """A paragraph for a changelog."""
    import iretrace.cli.rules as rules

    list(rules.rooms())  # loads the modules that hold the rules
    sources = {name: rule.source for name, rule in RULES.items()}
    about = parse(one.litmus, "the kept test").about if one.litmus else one.result.test
    return changelog(one.result, about, sources, one.command)


def reproducer(one: Remembered, directory: Path | None) -> str:
    """The litmus file with the command, to write to standard output; or what was written to a directory.

    InputError: a file is there already, or cannot be written."""
    test = parse(one.litmus, "the kept test")
    result = one.result
    head = f"# {result.hypervisor}, {result.vcpu}, {result.host}: {result.verdict}\n# {one.command}\n"
    if directory is None:
        return f"{head}\n{one.litmus.rstrip()}\n"
    name = re.sub(r"[^\w.-]", "_", test.name)
    command = re.sub(r"--test \S+", f"--test {name}.litmus", one.command)
    script = f'#!/bin/sh\n# {result.hypervisor}: {result.verdict}\ncd "$(dirname "$0")" || exit 2\n{command}\n'
    texts = {f"{name}.litmus": one.litmus, f"{name}.sh": script}
    reason = reason_for_no_program(test)
    if not reason:
        texts[f"{name}.c"] = program(test)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with open(directory / file, "x", encoding="utf-8") as out:
                out.write(text)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give an empty directory") from None
    told = "".join(f"{directory / file}\n" for file in texts)
    return told + (f"no C program: {reason}\n" if reason else "")
