"""Results of earlier runs: reused while nothing has changed, and never believed beyond their form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from iretrace.cli.driver import Request, run
from iretrace.cli.moved import relocated
from iretrace.cli.stored import (
    MAX_BYTES,
    Lookup,
    Shared,
    Shelf,
    Stored,
    Used,
    cache_directory,
    digest_of,
    key,
)
from iretrace.cli.told import Teller, read_as, read_rows
from iretrace.cli.workers import Work
from iretrace.explore.graph import Limits
from iretrace.litmus.corpus import select
from iretrace.verdict import CLine, Result, Verdict
from tests.cli.small_source import SmallSource
from tests.report.samples import ANY_RESULTS, RESULTS

NAME = "a" * 64
READ = {"a.c": "1", "b.h": ""}
TESTS = select(["nmi-complete-then-spin"])
LASSO = RESULTS[1]


def same(digests: object) -> bool:
    return digests == READ


def found(directory: Path) -> Result | None:
    kept = Lookup(Stored(directory), same).find(NAME)
    return kept.result if kept else None


def quiet(_text: str) -> None:
    """No progress."""


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    Stored(tmp_path / "new").keep(NAME, LASSO, Shelf().read(READ))
    assert found(tmp_path / "new") == LASSO


@settings(max_examples=30)
@given(ANY_RESULTS)
def test_any_result_survives_json(result: Result) -> None:
    tell = Teller()
    told, rows = json.loads(json.dumps([result, tell], default=tell))
    assert read_as(Result, told, read_rows(rows, {})) == result


def test_a_result_whose_files_have_changed_is_not_reused(tmp_path: Path) -> None:
    Stored(tmp_path).keep(NAME, LASSO, Shelf().read(READ))
    assert Lookup(Stored(tmp_path), lambda digests: False).find(NAME) is None


def test_a_search_that_a_limit_stopped_is_not_kept(tmp_path: Path) -> None:
    stopped = replace(LASSO, verdict=Verdict.UNDETERMINED, reason="stopped by the time limit of 1 s")
    Stored(tmp_path).keep(NAME, stopped, Shelf().read(READ))
    assert Stored(tmp_path).newest(NAME) is None


def test_what_is_not_modelled_is_kept(tmp_path: Path) -> None:
    open_question = replace(LASSO, verdict=Verdict.UNDETERMINED, reason="x86.c:1: not modelled")
    Stored(tmp_path).keep(NAME, open_question, Shelf().read(READ))
    assert found(tmp_path) == open_question


def entry(tmp_path: Path) -> tuple[Path, Any]:
    Stored(tmp_path).keep(NAME, LASSO, Shelf().read(READ))
    (path,) = tmp_path.glob(f"{NAME}-*.json")
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", "passes"),
        ("states", "many"),
        ("states", True),
        ("test", None),
        ("outcomes", [{"marks": "n", "ending": "spins"}]),
        ("trace", {"stem": []}),
        ("more", 1),
    ],
)
def test_a_result_of_another_form_is_not_believed(field: str, value: object, tmp_path: Path) -> None:
    path, content = entry(tmp_path)
    content["result"][field] = value
    path.write_text(json.dumps(content))
    assert Lookup(Stored(tmp_path), same).find(NAME) is None


@pytest.mark.parametrize(
    "rows",
    [
        {"CLine": [], "Assumption": []},
        {"CLine": [["a.c", 1, "f", "x;"]] * 99},
        {"CLine": [["a.c", "1", "f", "x;"]] * 99, "Assumption": []},
        {"CLine": [["a.c", 1, "f"]] * 99, "Assumption": []},
        {"CLine": [[["a.c"], 1, "f", "x;"]] * 99, "Assumption": []},
        [],
    ],
)
def test_a_result_without_the_lines_that_it_numbers_is_not_believed(rows: object, tmp_path: Path) -> None:
    path, content = entry(tmp_path)
    content["rows"] = rows
    path.write_text(json.dumps(content))
    assert Lookup(Stored(tmp_path), same).find(NAME) is None


@pytest.mark.parametrize("read", ["..", "", "b" * 64, "b" * 63 + "/"])
def test_a_list_of_files_that_is_not_ours_is_not_believed(read: str, tmp_path: Path) -> None:
    path, _ = entry(tmp_path)
    name, _, used, identity = path.name.split("-")
    path.rename(tmp_path / "-".join((name, read.replace("/", "\n"), used, identity)))
    assert Lookup(Stored(tmp_path), lambda digests: True).find(NAME) is None


def test_a_list_of_files_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    path, _ = entry(tmp_path)
    (tmp_path / f"{path.name.split('-')[1]}.json").write_text("{}")
    assert Lookup(Stored(tmp_path), lambda digests: True).find(NAME) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff"])
def test_rubbish_is_not_believed(text: str, tmp_path: Path) -> None:
    path, _ = entry(tmp_path)
    path.write_text(text, encoding="latin-1")
    assert Lookup(Stored(tmp_path), same).find(NAME) is None


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    path, _ = entry(tmp_path)
    with open(path, "ab") as file:
        file.truncate(MAX_BYTES + 1)
    assert Lookup(Stored(tmp_path), same).find(NAME) is None


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stored = Stored(tmp_path / "file" / "below")
    stored.keep(NAME, LASSO, Shelf().read(READ))
    stored.tidy()
    assert Lookup(stored, same).find(NAME) is None


def test_the_oldest_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iretrace.cli.stored.MAX_ENTRIES", 3)
    stored = Stored(tmp_path)
    for number in range(5):
        stored.keep(str(number) * 64, LASSO, Shelf().read(READ))
    stored.tidy()
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize(("given", "made"), [("/c", "/c/iretrace/results"), ("c", "~/.cache/iretrace/results")])
def test_the_directory_is_where_xdg_says(given: str, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_directory() == Path(made).expanduser()


def test_the_name_depends_on_each_part() -> None:
    assert len({key("a", "b"), key("ab", ""), key("a", "c"), key("a")}) == 4


def test_nothing_is_read_when_everything_can_be_reused(tmp_path: Path) -> None:
    run(Request(None, TESTS), SmallSource("defer"), quiet, Stored(tmp_path))
    source = SmallSource("defer")
    report = run(Request(None, TESTS), source, quiet, Stored(tmp_path))
    assert (report.reused, source.opened) == (1, [])
    assert [result.verdict for result in report.results] == [Verdict.VIOLATED]


@pytest.mark.parametrize(
    ("request_", "source"),
    [
        (Request(None, TESTS), SmallSource("")),
        (Request(None, TESTS), SmallSource("defer", {"a.c": "2"})),
        (Request(None, TESTS, hosts=["ticking"]), SmallSource("defer")),
        (Request(None, TESTS, limits=Limits(max_states=99)), SmallSource("defer")),
    ],
)
def test_another_hypervisor_tree_host_or_limit_is_checked_anew(
    request_: Request, source: SmallSource, tmp_path: Path
) -> None:
    run(Request(None, TESTS), SmallSource("defer"), quiet, Stored(tmp_path))
    assert run(request_, source, quiet, Stored(tmp_path)).reused == 0


def test_a_test_of_the_same_name_and_another_text_is_checked_anew(tmp_path: Path) -> None:
    path = tmp_path / "mine.litmus"
    text = "test mine\nabout A.\nvcpu sev-es\noutside nmi\n\nmain:\n    spin\nnmi:\n    mark n\n"
    reused = []
    for ending in ("    iretq\n", "    iretq\n", "    spin\n"):
        path.write_text(text + ending)
        report = run(Request(None, select([str(path)])), SmallSource(""), quiet, Stored(tmp_path / "cache"))
        reused.append(report.reused)
    assert reused == [0, 1, 0]


def test_tests_that_failed_last_begin_first_then_those_that_took_longest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[str] = []

    def check(test: Any, vcpu: str, host: str, *_rest: object, **_named: object) -> Result:
        begun.append(test.name)
        verdict = Verdict.VIOLATED if test.name == "nmi-complete-last" else Verdict.HOLDS
        seconds = {"maybe-nmi": 3.0, "three-nmis": 2.0}.get(test.name, 1.0)
        return replace(LASSO, test=test.name, vcpu=vcpu, host=host, verdict=verdict, seconds=seconds)

    monkeypatch.setattr("iretrace.cli.driver.check", check)
    monkeypatch.setattr("iretrace.cli.driver.results", lambda work, _progress: in_order(work))
    request = Request(None, select(["three-nmis", "nmi-complete-last", "maybe-nmi", "nmi-complete-first"]))
    for reads in ("1", "2"):
        begun.clear()
        run(request, SmallSource("", {"a.c": reads}), quiet, Stored(tmp_path))
    assert begun == ["nmi-complete-last", "maybe-nmi", "three-nmis", "nmi-complete-first"]


def in_order(work: Work[Any, Any]) -> Iterator[tuple[int, Any]]:
    """The jobs one after the other, in this process."""
    for name, numbers in work.groups.items():
        opened = work.open(name)
        for number in numbers:
            yield number, work.do(opened, number, quiet)


def test_what_one_source_still_reads_another_one_need_not(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    run(Request(None, TESTS), SmallSource("defer"), quiet, stored)
    assert run(Request(None, TESTS), SmallSource("defer"), quiet, stored).reused == 1
    assert run(Request(None, TESTS), SmallSource("defer", {"a.c": "2"}), quiet, stored).reused == 0


def test_a_result_whose_definitions_are_the_same_is_told_of_where_they_stand_now(tmp_path: Path) -> None:
    assert LASSO.trace is not None and LASSO.trace.cited is not None
    lines = sorted({(line.path, line.line) for line in lines_of(LASSO)})
    used: Used = {f"function {number}": (str(number), path, (line,)) for number, (path, line) in enumerate(lines)}
    Stored(tmp_path).keep(NAME, LASSO, Shelf().read(READ), [Shelf().used(used)])
    kept = Lookup(Stored(tmp_path), same, lambda _used, _before: {place: place[1] + 7 for place in lines}).find_moved(
        NAME
    )
    assert kept is not None and kept.result.trace is not None and kept.result.trace.cited is not None
    assert kept.result.trace.cited.line == LASSO.trace.cited.line + 7
    assert [line.line - 7 for line in lines_of(kept.result)] == [line.line for line in lines_of(LASSO)]


def test_a_result_that_cites_a_line_of_no_definition_is_not_told_of_another_tree(tmp_path: Path) -> None:
    Stored(tmp_path).keep(NAME, LASSO, Shelf().read(READ), [Shelf().used({"function f": ("1", "", ())})])
    assert Lookup(Stored(tmp_path), same, lambda _used, _before: {}).find_moved(NAME) is None


def test_a_line_in_a_reason_moves_too() -> None:
    told = relocated(replace(RESULTS[0], reason="a/b.c:12: no such thing"), {("a/b.c", 12): 15})
    assert told is not None and told.reason == "a/b.c:15: no such thing"


def lines_of(result: Result) -> list[CLine]:
    assert result.trace is not None
    steps = (*result.trace.stem, *result.trace.loop)
    lines = [line for step in steps for line in (step.where, *step.executed)]
    return [line for line in lines if isinstance(line, CLine) and line.line]


@pytest.mark.parametrize(
    ("told", "is_one"),
    [("1\ta.c\t1 2", True), ("1", False), ("1\ta.c", False), ("1\ta.c\tone", False), (1, False), (["1", "a.c"], False)],
)
def test_a_definition_of_another_form_is_not_believed(told: object, is_one: bool, tmp_path: Path) -> None:
    name = digest_of({"function f": told})
    Stored(tmp_path).keep(NAME, LASSO, Shelf().read(READ), [Shared(name, {"function f": told})])
    moves = {(line.path, line.line): line.line for line in lines_of(LASSO)}
    kept = Lookup(Stored(tmp_path), same, lambda _used, _before: moves).find_moved(NAME)
    assert (kept is not None) == is_one


def test_what_is_remembered_is_recalled_if_it_is_of_its_kind(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "new")
    stored.remember(NAME, {"a": ["1"]})
    assert stored.recall(dict[str, tuple[str, ...]], NAME) == {"a": ("1",)}
    assert stored.recall(dict[str, str], NAME) is None
    assert stored.recall(dict[str, str], "b" * 64) is None
