"""`iretrace show` and `iretrace reproduce`: results of earlier checks, told again without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from email.header import Header
from pathlib import Path

from iretrace.cli.known import mark_known
from iretrace.cli.reproduce import program, reason_for_no_program
from iretrace.cli.stored import Remembered, Stored
from iretrace.litmus.parse import parse
from iretrace.report.changelog import changelog
from iretrace.report.summary import ID_DIGITS, WITH_PATCHES, result_id
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
    if one.origin.patches:
        marked = replace(marked, hypervisor=f"{marked.hypervisor}{WITH_PATCHES}")
    return one._replace(result=marked)


def found_by(one: Remembered) -> list[str]:
    """What finds a result again, in lines."""
    told = [f"Found by: {one.origin.command}"]
    if one.origin.patches:
        told.append(f"With patches that are kept: iretrace reproduce {result_id(one.result)} --output DIR writes them")
    return told


def changelog_of(one: Remembered) -> str:
    """A paragraph for a changelog."""
    import iretrace.cli.rules as rules

    list(rules.rooms())  # loads the modules that hold the rules
    sources = {name: rule.source for name, rule in RULES.items()}
    litmus, command, _ = one.origin
    about = parse(litmus, "the kept test").about if litmus else one.result.test
    return changelog(one.result, about, sources, command)


def reproducer(one: Remembered, directory: Path | None) -> str:
    """The litmus file with the command, to write to standard output; or what was written to a directory.

    InputError: a file is there already, or cannot be written."""
    litmus, command, patches = one.origin
    test = parse(litmus, "the kept test")
    result = one.result
    if directory is None:
        what = f"{result.hypervisor}, {result.vcpu}, {result.host}: {result.verdict}"
        return f"{_comment([what, *found_by(one)])}\n{litmus.rstrip()}\n"
    name = re.sub(r"[^\w.-]", "_", test.name)
    texts = {f"{name}.litmus": litmus}
    texts |= {f"{name}.{number}.patch": mail_of(*patch) for number, patch in enumerate(patches, 1)}
    head = f"#!/bin/sh\n{_comment([f'{result.hypervisor}: {result.verdict}'])}"
    texts[f"{name}.sh"] = f'{head}cd "$(dirname "$0")" || exit 2\n{_with_files(command, list(texts))}\n'
    reason = reason_for_no_program(test)
    if not reason:
        texts[f"{name}.c"] = program(test)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with open(directory / file, "x", encoding="utf-8", newline="") as out:
                out.write(text)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give an empty directory") from None
    told = "".join(f"{directory / file}\n" for file in texts)
    return told + (f"no C program: {reason}\n" if reason else "")


def _comment(lines: Iterable[str]) -> str:
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def _with_files(command: str, files: Iterable[str]) -> str:
    """A command with these files for its test and its patches."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word in ("--test", "--patch"):
            next(words)
        elif word != "--each":
            kept.append(word)
    for file in files:
        kept += ["--patch" if file.endswith(".patch") else "--test", file]
    return shlex.join(kept)


def mail_of(name: str, text: str) -> str:
    """A patch as a mail, from which it is read just so."""
    _, _, subject = name.partition(": ")
    told = subject if subject.isascii() else Header(subject, "utf-8").encode()
    head = f"Subject: {told}\n" if subject else ""
    return f"{head}Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{text}"
