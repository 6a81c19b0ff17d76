"""docs/tour.md says what a reader sees who types it."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.md"


def test_a_prompt_answers_as_the_tour_says() -> None:
    text = re.sub(r"^```(?:python)?$", "", TOUR.read_text(encoding="utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, TOUR.name, str(TOUR), 0)
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert results.attempted > 40
    assert results.failed == 0, "".join(report)


def test_the_files_that_the_tour_names_are_there() -> None:
    named = set(
        re.findall(r"`((?:src|tests|docs|machine|kvm|world|explore|report|litmus)/[\w/.-]+)`", TOUR.read_text())
    )
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "src" / "iretrace" / name).exists(), name
