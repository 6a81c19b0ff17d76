"""What host steps came to is kept between runs, and what verdicts rest on them: as the driver goes about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.cli import driver
from iretrace.cli.driver import Ran, Request, verdicts
from iretrace.cli.moved import Moves
from iretrace.cli.sources import Recalled
from iretrace.cli.stored import MAX_TEXTS, Stored
from iretrace.litmus.corpus import select
from iretrace.verdict import Assumption, Result, Verdict
from iretrace.world.protocol import Hypervisor
from tests.cli.small_source import TEST, SmallSource

REQUEST = Request(None, select([TEST]), vcpus=["sev-es"], hosts=["tickless"])
MISTAKE = "defer"


def quiet(_text: str) -> None:
    """No progress."""


class Telling(SmallSource):
    """Tells of the verdicts that it was told of, and believes them. where: notes what it is asked, over processes."""

    def __init__(self, where: Path, mistake: str, reads: dict[str, str]) -> None:
        super().__init__(mistake, reads)
        self.where = where
        self.verdicts: dict[str, str] = {}
        self.taken: dict[str, str] = {}
        self.moves: Moves = {}

    def note(self, what: str) -> None:
        with self.where.open("a") as file:
            file.write(f"{what}\n")

    def lowered(self) -> bytes:
        """A word."""
        self.note("lowered")
        return b"lowered"

    def take_lowered(self, texts: Sequence[bytes]) -> None:
        """Noted."""
        for text in texts:
            assert text == b"lowered"
            self.note("take_lowered")

    def open(self, vcpu: str) -> Hypervisor:
        """Noted."""
        self.note("open")
        return super().open(vcpu)

    def steps_of(self, hypervisor: Hypervisor) -> bytes:
        """The verdicts."""
        self.note("steps_of")
        return json.dumps(self.verdicts).encode()

    def take_steps(self, hypervisor: Hypervisor, text: bytes) -> None:
        """The verdicts."""
        self.note("take_steps")
        self.taken |= json.loads(text)

    def remember(self, hypervisor: Hypervisor, name: str, told: str) -> None:
        """Kept here."""
        self.note("remember")
        self.verdicts[name] = told

    def recall(self, hypervisor: Hypervisor, name: str) -> Recalled | None:
        """What was taken."""
        self.note("recall")
        return Recalled(self.taken[name], self.moves) if name in self.taken else None

    def asked(self) -> list[str]:
        """What it was asked since the last time."""
        said = self.where.read_text().split() if self.where.exists() else []
        self.where.unlink(missing_ok=True)
        return said


def ran(stored: Stored | None, source: SmallSource, anew: bool = False) -> Ran:
    """One verdict."""
    return verdicts(REQUEST, source, quiet, stored, anew)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path / "kept")


def source(tmp_path: Path, version: str = "1", mistake: str = "") -> Telling:
    """Of a tree that differs in a.c."""
    return Telling(tmp_path / "asked", mistake, {"a.c": version})


def test_a_verdict_that_is_recalled_is_not_found_again(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source(tmp_path)
    (before,) = ran(stored, first).results
    assert first.asked() == ["open", "recall", "remember", "steps_of", "lowered"]
    monkeypatch.setattr(driver, "check", None)
    second = source(tmp_path, "2")
    (after,) = ran(stored, second).results
    assert second.asked() == ["take_lowered", "open", "take_steps", "recall", "remember", "steps_of", "lowered"]
    assert replace(after, seconds=0) == replace(before, seconds=0)


def test_what_the_ledger_says_of_the_hypervisor_is_asked_anew(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knob = Assumption("knob", "a", "machine", "consulted")
    asked = Assumption("stub", "b", "rules", "of before")

    def with_knob(*args: object, **named: object) -> Result:
        result = check(*args)  # type: ignore[arg-type]
        return replace(result, ledger=replace(result.ledger, assumptions=(asked, knob)))

    monkeypatch.setattr(driver, "check", with_knob)
    ran(stored, source(tmp_path))
    (after,) = ran(stored, source(tmp_path, "2")).results
    assert after.ledger.assumptions == (knob,)


def test_a_verdict_that_names_a_line_which_is_gone_is_found_again(stored: Stored, tmp_path: Path) -> None:
    """Small's steps name lines of small.c."""
    (before,) = ran(stored, source(tmp_path, mistake=MISTAKE)).results
    assert before.verdict is Verdict.VIOLATED
    second = source(tmp_path, "2", MISTAKE)
    (after,) = ran(stored, second).results
    assert replace(after, seconds=0) == replace(before, seconds=0)


def test_what_was_told_wrongly_is_not_believed(stored: Stored, tmp_path: Path) -> None:
    (before,) = ran(stored, source(tmp_path)).results
    second = source(tmp_path, "2")
    second.recall = lambda hypervisor, name: Recalled('{"verdict": 1}', {})  # type: ignore[method-assign]
    (after,) = ran(stored, second).results
    assert replace(after, seconds=0) == replace(before, seconds=0)


def test_all_overrides_what_is_kept(stored: Stored, tmp_path: Path) -> None:
    ran(stored, source(tmp_path))
    second = source(tmp_path, "2")
    second.asked()
    ran(stored, second, anew=True)
    assert not {"take_steps", "take_lowered"} & set(second.asked())


def test_without_a_store_nothing_is_kept(tmp_path: Path) -> None:
    first = source(tmp_path)
    ran(None, first)
    assert first.asked() == ["open"]


def test_of_many_texts_the_longest_are_read(stored: Stored) -> None:
    for size in range(1, MAX_TEXTS + 3):
        stored.keep_text("name", b"x" * size)
    stored.keep_text("other", b"y" * 100)
    assert [len(text) for text in stored.texts("name")] == list(range(MAX_TEXTS + 2, 2, -1))
    assert stored.texts("nobody") == []


def test_texts_that_are_too_long_are_neither_kept_nor_read(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.keep_text("name", b"x" * 11)
    monkeypatch.setattr("iretrace.cli.stored.MAX_BYTES", 10)
    stored.keep_text("name", b"x" * 9)
    stored.keep_text("name", b"x" * 12)
    assert [len(text) for text in stored.texts("name")] == [9]


def test_texts_are_tidied_away_with_the_rest(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.keep_text("name", b"x" * 11)
    monkeypatch.setattr("iretrace.cli.stored.MAX_TOTAL_BYTES", 10)
    stored.tidy()
    assert stored.texts("name") == []


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stored = Stored(tmp_path / "file")
    stored.keep_text("name", b"x")
    assert stored.texts("name") == []
