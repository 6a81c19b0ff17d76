"""Historical defects put back into trees that have the fix are convicted; controls are acquitted (docs/results.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trees import edits
from tools.results import ROWS, TARGET, Row, complaint, judge, render


@pytest.mark.trees
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_defect_put_back_is_judged_as_listed(row: Row, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(f"tree_{row.tree.replace('.', '_')}")
    assert complaint(row, judge(row, root)) == ""


def test_the_page_is_what_the_rows_make_it() -> None:
    assert TARGET.read_text(encoding="utf-8") == render()


def test_rows_name_edits_that_there_are_and_say_why_a_defect_is_not_convicted() -> None:
    for row in ROWS:
        assert not row.edit or isinstance(getattr(edits, row.edit), tuple), row.name
        assert row.says if row.verdict == "violated" else row.note, row.name
