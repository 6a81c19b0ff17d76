"""The README shows what the tool prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iretrace.cli.main import main
from iretrace.linux.tree import open_tree

pytestmark = pytest.mark.trees

README = Path(__file__).resolve().parents[2] / "README.md"


def table(text: str) -> list[str]:
    """The steps, why, where, and what it rests on, down to the summary. Without its indentation."""
    found = re.findall(r"^ *step  who.*?^ *0 new, .*?$", text, re.MULTILINE | re.DOTALL)
    margin = len(found[0]) - len(found[0].lstrip(" "))
    return [line[margin:].rstrip() for line in found[0].split("\n")]


def test_the_counterexample_of_the_readme_is_what_comes_out(tree_6_1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = README.read_text(encoding="utf-8")
    version = open_tree(tree_6_1).version
    if f"linux-source-6.1 ({version})" not in shown:
        pytest.skip(f"{version} has other line numbers than the tree of the README")
    options = "--test nmi-complete-then-spin --vcpu sev-es --host tickless --no-cache --jobs 1"
    assert main(["check", str(tree_6_1), *options.split()]) == 1
    assert table(capsys.readouterr().out) == table(shown)
