"""Every command line that README and docs show is one that `iretrace` understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from iretrace.cli.arguments import make_parser

ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(r"^ {4}(?:.*\| |git bisect run )?iretrace (.*)$", re.MULTILINE)
"""In an indented block; perhaps behind a pipe, or for git to run."""


def shown() -> list[tuple[str, str]]:
    """(page, arguments) of each; what explains a command stands two blanks or a # behind it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(page.name, line) for page in pages for line in SHOWN.findall(page.read_text(encoding="utf-8"))]
    return [(page, re.split(r"\s{2,}|\s#|>", line)[0]) for page, line in found]


def test_there_are_many() -> None:
    assert len(shown()) > 40


@pytest.mark.parametrize(("page", "arguments"), shown())
def test_a_command_that_is_shown_is_understood(page: str, arguments: str) -> None:
    make_parser().parse_args(shlex.split(arguments))
