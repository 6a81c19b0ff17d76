"""`iretrace reproduce`: what shows a result again: its litmus test, the command, and a C program for a real KVM."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from textwrap import wrap

from iretrace.cli.outcomes import cases
from iretrace.litmus.test import Test
from iretrace.live.guests import KINDS, RFLAGS, RFLAGS_IF, reason_not_to_run
from iretrace.live.machine_code import assemble
from iretrace.live.real_mode import lasts
from iretrace.verdict import InputError, Outcome

KIND = "plain"
"""The kind of vCPU that any process can make."""

ROUNDS = 2000
BYTES_IN_A_LINE = 12

LINE = 110
"""Characters of a line of text."""


def outcomes_of(test: Test) -> set[Outcome]:
    """What the processor alone can show, for all values of the disputed rules."""
    return {outcome for title, outcomes in cases(test) if title.startswith(KIND) for outcome in outcomes}


def reason_for_no_program(test: Test) -> str:
    """Why there is no C program for a test; "" if there is one."""
    if any(arrival.at >= 0 for arrival in test.outside):
        return "its events are bound to places of the guest, which needs `iretrace run`"
    if test.cold:
        return "it needs pages that were never touched, which needs `iretrace run`"
    if lasts(test):
        return "it goes to SMM or is reset, which needs `iretrace run`"
    reason = reason_not_to_run(test)
    if reason:
        return reason
    outcomes = outcomes_of(test)
    if not any(outcome.marks for outcome in outcomes):
        return "the guest leaves no marks"
    if any(outcome.ending == "loops" for outcome in outcomes):
        return "the guest goes on for ever, so its marks are never all there"
    return ""


def program(test: Test) -> str:
    """A C program that runs the test's guest on this machine's KVM. InputError: the test is not of such a kind."""
    reason = reason_for_no_program(test)
    if reason:
        raise InputError(f"no C program for {test.name}: {reason}; the litmus file and its command show it")
    guest = assemble(test, {})
    outcomes = sorted({" ".join(outcome.marks) for outcome in outcomes_of(test)})
    names = {number: name.upper() for name, number in KINDS.items()}
    filled = {
        "TEST": test.name,
        "ABOUT": "\n".join(f" * {line}" for line in wrap(" ".join(test.about.split()), LINE)).replace("*/", "* /"),
        "ROUNDS": str(ROUNDS),
        "EVENTS": ", ".join(names[KINDS[arrival.kind]] for arrival in test.outside),
        "MARKS": ", ".join(f'"{mark}"' for mark in test.marks),
        "ALLOWED": ", ".join(f'"{outcome}"' for outcome in outcomes),
        "CHUNKS": "\n".join(_array(address, data) for address, data in sorted(guest.chunks.items())),
        "CHUNK_LIST": "".join(
            f"\t{{ {address:#x}, {len(data)}, at_{address:x} }},\n" for address, data in sorted(guest.chunks.items())
        ),
        "ENTRY": hex(guest.entry),
        "RFLAGS": hex(RFLAGS | (RFLAGS_IF if test.interrupts else 0)),
    }
    text = resources.files("iretrace.cli").joinpath("reproducer.c").read_text("utf-8")
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text


def _array(address: int, data: bytes) -> str:
    """A C array; zeros at its end are left out, as C fills them in."""
    shown = data.rstrip(b"\0") or b"\0"
    lines = "".join(f"\t{row}\n" for row in _rows(shown))
    return f"static const uint8_t at_{address:x}[{len(data)}] = {{\n{lines}}};"


def _rows(data: bytes) -> Iterable[str]:
    for start in range(0, len(data), BYTES_IN_A_LINE):
        yield " ".join(f"{byte:#04x}," for byte in data[start : start + BYTES_IN_A_LINE])
