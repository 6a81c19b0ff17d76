"""docs/the-mail.md says what the trees say."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.cli.mail import tree_subject
from iretrace.cli.mail_page import answer_lines
from iretrace.mail import ask

PAGE = Path(__file__).resolve().parents[2] / "docs" / "the-mail.md"


def missing(lines: list[str]) -> list[str]:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in page]


@pytest.mark.trees
@pytest.mark.slow
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_the_page_says_what_the_tree_says(request: pytest.FixtureRequest, series: str) -> None:
    tree = request.getfixturevalue(f"tree_{series.replace('.', '_')}")
    subject = tree_subject(tree, lambda _text: None)
    assert missing(answer_lines(f"Linux {series}", ask(subject))) == []
