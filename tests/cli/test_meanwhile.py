"""What two processes do at once before the first verdict of a review: nothing comes out that would not else."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from iretrace.cli import review as module
from iretrace.cli.driver import Request, begun, verdicts
from iretrace.cli.meanwhile import begun_and_opened
from iretrace.cli.review import Stage, review
from iretrace.cli.sources import AboutPatches
from iretrace.cli.stored import Stored
from iretrace.cli.workers import Aside
from iretrace.litmus.corpus import select
from iretrace.verdict import InputError, Result
from iretrace.world.protocol import Hypervisor
from tests.cli.small_source import TEST, SmallSource

PATCHES = (("a.patch", "a"), ("b.patch", "b"))
HERE = str(os.getpid())
REQUEST = Request(None, select([TEST]), vcpus=["sev-es"], hosts=["tickless", "ticking"], patches=PATCHES[:1], jobs=2)


def quiet(_text: str) -> None:
    """No progress."""


class Noting(SmallSource):
    """Notes in a file which process asks it for what. With patches a.c is another one for each number of them; mistake:
    what is wrong then. fails: no hypervisor is opened then."""

    def __init__(self, where: Path, mistake: str = "", fails: bool = False) -> None:
        super().__init__("")
        self.where = where
        self.then = mistake
        self.fails = fails
        self.quick = False

    def note(self, what: str) -> None:
        with self.where.open("a") as file:
            file.write(f"{what} {len(self.patches)} {os.getpid()}\n")

    def patched(self, patches: Sequence[tuple[str, str]]) -> Noting:
        """Another one."""
        made = copy(self)
        made.patches, made.mistake, made.reads = patches, self.then, {"a.c": f"patched {len(patches)}"}
        return made

    def identity(self) -> str:
        """That of all of them."""
        return "noting"

    def is_quick(self, stored: Stored | None) -> bool:
        """As it was told."""
        return self.quick

    def open(self, vcpu: str) -> Hypervisor:
        """Noted."""
        self.note(f"open-{vcpu}")
        if self.fails and self.patches:
            raise InputError("a.c:1: no vCPU can be created")
        return super().open(vcpu)

    def still_reads(self, digests: Mapping[str, str]) -> bool:
        """Noted."""
        self.note("look")
        return super().still_reads(digests)

    def asked(self, what: str, patches: int = 1) -> list[str]:
        """The processes that asked for that, since the last time that anything was asked here."""
        lines = [line.split() for line in self.where.read_text().splitlines()] if self.where.exists() else []
        self.where.unlink(missing_ok=True)
        return [who for asked, count, who in lines if asked.startswith(what) and int(count) == patches]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path / "kept")


@pytest.fixture
def tree(tmp_path: Path) -> Noting:
    return Noting(tmp_path / "asked")


@pytest.fixture(autouse=True)
def slow_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never done before all that may be opened is."""
    monkeypatch.setattr(Aside, "is_done", lambda self: False)


def ran(stages: Sequence[Stage]) -> list[Result]:
    """All results, but for the time that they took."""
    return [replace(one, seconds=0) for stage in stages if stage.ran is not None for one in stage.ran.results]


def test_what_the_first_process_has_opened_is_not_opened_again(stored: Stored, tree: Noting) -> None:
    review(REQUEST, tree, quiet, stored)
    assert tree.asked("open") == [HERE]


def test_another_process_looks_for_what_is_kept(stored: Stored, tree: Noting) -> None:
    verdicts(REQUEST, tree, quiet, stored)
    tree.asked("look")
    before, _ = review(REQUEST, tree, quiet, Stored(stored._directory))
    assert before.ran is not None
    assert before.ran.reused == 2
    lookers = tree.asked("look", patches=0)
    assert lookers
    assert HERE not in lookers


@pytest.mark.parametrize("mistake", ["", "defer"])
def test_the_results_are_those_of_one_process_after_the_other(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = []
    for number in range(2):
        tree = Noting(tmp_path / "asked", mistake)
        both.append(ran(review(REQUEST, tree, quiet, Stored(tmp_path / f"kept-{number}"))))
        monkeypatch.setattr(module, "begun_and_opened", begun)
    assert both[0] == both[1]
    assert len(both[0]) == 4


def test_an_opening_that_fails_is_told_by_who_needs_it(stored: Stored, tmp_path: Path) -> None:
    tree = Noting(tmp_path / "asked", fails=True)
    with pytest.raises(InputError, match="^a.c:1: no vCPU can be created$"):
        review(REQUEST, tree, quiet, stored)
    first, *lanes = tree.asked("open")
    assert first == HERE
    assert lanes
    assert first not in lanes
    assert gc.isenabled()


def test_an_opening_that_fails_is_no_error_where_all_results_are_kept(stored: Stored, tmp_path: Path) -> None:
    tree = Noting(tmp_path / "asked", fails=True)
    verdicts(REQUEST, tree, quiet, stored)
    patched = tree.patched(PATCHES[:1])
    patched.used = tree.used  # type: ignore[method-assign]
    tree.patched = lambda patches: patched  # type: ignore[method-assign]
    assert len(ran(review(REQUEST, tree, quiet, stored))) == 4
    assert HERE in tree.asked("open")


def test_of_a_tree_that_was_checked_before_nothing_is_opened(stored: Stored, tree: Noting) -> None:
    review(REQUEST, tree, quiet, stored)
    tree.asked("open")
    more = replace(REQUEST, tests=select([TEST, "maybe-nmi"]))
    review(more, tree, quiet, Stored(stored._directory))
    assert HERE not in tree.asked("open")


def nothing_stored(tree: Noting, stored: Stored) -> None:
    review(REQUEST, tree, quiet, None)


def all_anew(tree: Noting, stored: Stored) -> None:
    review(REQUEST, tree, quiet, stored, anew=True)


def out_of_scope(tree: Noting, stored: Stored) -> None:
    tree.quick, tree.about = True, AboutPatches(False)
    review(REQUEST, tree, quiet, stored)


@pytest.mark.parametrize("check", [nothing_stored, all_anew, out_of_scope])
def test_nothing_is_opened_early_where_that_does_not_pay(
    check: Callable[[Noting, Stored], None], stored: Stored, tree: Noting
) -> None:
    check(tree, stored)
    assert HERE not in tree.asked("open")


def test_of_several_trees_one_is_opened_early(stored: Stored, tree: Noting) -> None:
    review(replace(REQUEST, patches=PATCHES), tree, quiet, stored, each=True)
    opened = tree.where.read_text()
    assert tree.asked("open", patches=1) == [HERE]
    tree.where.write_text(opened)
    assert HERE not in tree.asked("open", patches=2)


def test_the_kind_of_most_tasks_is_opened_first_and_no_more_when_the_lookups_are_done(
    stored: Stored, tree: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(REQUEST, vcpus=(), tests=select(["hlt-in-nmi", TEST, "maybe-nmi"]))
    assert list(begun_and_opened(request, tree, quiet, stored).opened) == ["sev-es", "plain"]
    done = iter([False, True])
    monkeypatch.setattr(Aside, "is_done", lambda self: next(done))
    assert list(begun_and_opened(request, tree, quiet, stored).opened) == ["sev-es"]


def test_who_fails_to_read_leaves_no_process_behind(
    stored: Stored, tree: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_source: SmallSource) -> None:
        raise InputError("a.c:1: wrong")

    monkeypatch.setattr(Noting, "read", fail)
    with pytest.raises(InputError, match="a.c:1: wrong"):
        review(REQUEST, tree, quiet, stored)
    assert not multiprocessing.active_children()
