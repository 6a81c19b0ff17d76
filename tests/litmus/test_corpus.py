"""The shipped tests, how tests are chosen, and that the documentation tells the truth about the language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iretrace.litmus import corpus, grammar, parse
from iretrace.verdict import InputError

DOCS = (Path(__file__).parents[2] / "docs" / "litmus.md").read_text(encoding="utf-8")
FILES = sorted((Path(corpus.__file__).parent / "corpus").glob("*.litmus"))


def test_the_corpus_is_there() -> None:
    assert {test.name for test in corpus.shipped()} >= {
        "nmi-complete-then-spin",
        "nmi-complete-first",
        "nmi-complete-last",
        "three-nmis",
        "nmi-in-sti-shadow",
        "nmi-in-movss-shadow",
        "nmi-at-hlt",
        "nmi-at-sti-hlt",
        "nmi-on-cold-stack",
        "nmi-never-completed",
        "nmi-ist-overwrite",
        "vc-inside-nmi",
        "maybe-nmi",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_test_is_named_after_its_file_and_teaches(path: Path) -> None:
    test = parse.load(path)
    assert test.name == path.stem
    assert len(test.about.split()) >= 15
    assert test.reach is not None
    assert test.clauses
    assert max(map(len, path.read_text(encoding="utf-8").split("\n"))) <= 80


def test_no_shipped_test_can_be_vacuous_by_contradicting_itself() -> None:
    for test in corpus.shipped():
        claims = {(clause.quantifier, clause.marks) for clause in test.clauses}
        for quantifier, marks in claims:
            assert quantifier != "never" or not claims & {("always", marks), ("sometimes", marks)}, test.name


def test_nothing_selected_means_the_corpus() -> None:
    assert corpus.select([]) == corpus.shipped()


def test_tests_are_selected_by_name_file_and_directory(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.litmus").write_text(f"test {name}\nvcpu sev-es\nmain:\nspin\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a test", encoding="utf-8")
    chosen = corpus.select(["three-nmis", str(tmp_path / "b.litmus"), str(tmp_path)])
    assert [test.name for test in chosen] == ["three-nmis", "b", "a"]


@pytest.mark.parametrize("name", ["", "zzz"])
def test_a_name_that_is_like_none_is_not_answered_with_all_of_them(name: str) -> None:
    with pytest.raises(InputError, match=f"no shipped test and no file is called '{name}'; iretrace tests lists them$"):
        corpus.select([name])


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no shipped test and no file is called 'tree-nmis'; write 'three-nmis'"):
        corpus.select(["tree-nmis"])


def test_a_directory_without_tests_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \*\.litmus file in this directory"):
        corpus.select([str(tmp_path)])


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.litmus: no such file"):
        corpus.select([str(tmp_path / "none.litmus")])


def test_two_tests_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.litmus"
    path.write_text("test three-nmis\nvcpu sev-es\nmain:\nspin\n", encoding="utf-8")
    with pytest.raises(InputError, match="give one of them another name"):
        corpus.select(["three-nmis", str(path)])


@pytest.mark.parametrize("text", re.findall(r"```litmus\n(.*?)```", DOCS, re.DOTALL))
def test_every_example_of_the_documentation_is_a_valid_test(text: str) -> None:
    assert parse.parse(text, "docs/litmus.md").reach is not None


def test_the_documentation_shows_the_shipped_test() -> None:
    path = Path(corpus.__file__).parent / "corpus" / "nmi-complete-then-spin.litmus"
    assert f"```litmus\n{path.read_text(encoding='utf-8')}```" in DOCS


ERRORS = re.search(r"```errors\n(.*?)```", DOCS, re.DOTALL)
assert ERRORS is not None


@pytest.mark.parametrize("line", ERRORS.group(1).strip().split("\n"))
def test_every_error_of_the_documentation_is_what_the_parser_says(line: str) -> None:
    change, message = line.split("|", 1)
    old, new = (part.strip() for part in change.split("->"))
    first = re.search(r"```litmus\n(.*?)```", DOCS, re.DOTALL)
    assert first is not None
    with pytest.raises(InputError) as caught:
        parse.parse(re.sub(rf"^( *){old}", rf"\1{new}", first.group(1), count=1, flags=re.MULTILINE), "mine.litmus")
    assert str(caught.value) == message.strip()


@pytest.mark.parametrize("word", sorted({*grammar.HEADERS, *grammar.MNEMONICS, *grammar.VIEW_FIELDS} - {"mov"}))
def test_every_word_of_the_language_is_documented(word: str) -> None:
    assert f"`{word}" in DOCS or f"`{word}`" in DOCS
