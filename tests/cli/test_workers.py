"""Several processes: all results come, and what goes wrong in one is heard of."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from iretrace.cli.workers import Aside, Work, WorkerDied, results
from iretrace.verdict import InputError

Say = Callable[[str], None]


def quiet(_text: str) -> None:
    """No progress."""


def double(opened: int, number: int, _say: Say) -> int:
    return opened + 2 * number


def start(_name: str) -> int:
    return 100


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_job_is_done_once(processes: int) -> None:
    work = Work({"a": [0, 2], "b": [1, 3, 4]}, start, double, processes)
    assert sorted(results(work, quiet)) == [(n, 100 + 2 * n) for n in range(5)]


def test_a_process_opens_a_group_once_and_goes_on_with_another_when_it_is_done() -> None:
    opened: list[str] = []

    def remember(name: str) -> list[str]:
        opened.append(name)
        return opened

    work: Work[list[str], list[str]] = Work({"a": [0], "b": [1, 2]}, remember, lambda opened, *_: opened)
    assert list(results(work, quiet)) == [(1, ["b"]), (2, ["b"]), (0, ["b", "a"])]


def test_what_a_job_says_is_heard() -> None:
    said: list[str] = []

    def talk(_opened: int, _number: int, say: Say) -> int:
        say("here")
        return 0

    list(results(Work({"a": [0]}, start, talk), said.append))
    assert said == ["here"]


def test_an_error_of_a_job_is_raised() -> None:
    def fail(_opened: int, _number: int, _say: Say) -> int:
        raise InputError("a:1: wrong")

    with pytest.raises(InputError, match="a:1: wrong"):
        list(results(Work({"a": [0, 1, 2]}, start, fail, 2), quiet))


def test_an_error_of_an_opening_is_raised() -> None:
    def fail(_name: str) -> int:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(results(Work({"a": [0]}, fail, double), quiet))


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        """Cannot be pickled."""

    def fail(_opened: int, _number: int, _say: Say) -> int:
        raise Local("here")

    with pytest.raises(RuntimeError, match="Local: here"):
        list(results(Work({"a": [0]}, start, fail), quiet))


def test_a_process_that_is_killed_does_not_leave_us_waiting() -> None:
    def die(_opened: int, _number: int, _say: Say) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(WorkerDied, match="-9"):
        list(results(Work({"a": [0]}, start, die), quiet))


def test_who_stops_listening_leaves_no_process_behind() -> None:
    def dawdle(_opened: int, number: int, _say: Say) -> int:
        if number:
            time.sleep(60)
        return os.getpid()

    running = results(Work({"a": [0, 1]}, start, dawdle, 2), quiet)
    _, lane = next(running)
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(lane, 0)


def test_something_is_worked_out_aside() -> None:
    assert Aside(os.getpid).result() != os.getpid()


def test_an_error_of_what_is_worked_out_aside_is_raised_where_it_is_asked_for() -> None:
    def fail() -> int:
        raise InputError("a:1: wrong")

    aside = Aside(fail)
    with pytest.raises(InputError, match="a:1: wrong"):
        aside.result()


def test_what_is_worked_out_aside_can_be_stopped() -> None:
    aside = Aside(lambda: time.sleep(60))
    aside.stop()
    with pytest.raises(WorkerDied):
        aside.result()


def test_it_is_stopped_where_its_with_ends() -> None:
    with Aside(lambda: time.sleep(60)) as aside:
        assert not aside.is_done()
    assert aside.is_done()
    with pytest.raises(WorkerDied):
        aside.result()


def test_a_large_result_comes_whole_to_who_asks_late() -> None:
    large = bytes(1 << 22)
    aside = Aside(lambda: large)
    while not aside.is_done():
        time.sleep(0.01)
    assert aside.result() == large


def test_a_process_aside_that_is_killed_does_not_leave_us_waiting() -> None:
    aside = Aside(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerDied):
        aside.result()


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_opened_is_closed_when_there_is_no_more_to_do(processes: int, tmp_path: Path) -> None:
    def close(opened: Mapping[str, int]) -> None:
        for name, one in opened.items():
            (tmp_path / f"{name}-{os.getpid()}").write_text(str(one))

    work = Work({"a": [0, 1], "b": [2]}, start, double, processes, close)
    assert len(list(results(work, quiet))) == 3
    closed = sorted(path.name[0] for path in tmp_path.iterdir())
    assert closed == ["a", "b"] or (processes == 2 and set(closed) == {"a", "b"})
    assert {path.read_text() for path in tmp_path.iterdir()} == {"100"}


def test_an_error_of_a_closing_is_raised() -> None:
    def fail(_opened: Mapping[str, int]) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(results(Work({"a": [0, 1]}, start, double, 2, fail), quiet))
