"""Colour and progress, on terminals and elsewhere."""

from __future__ import annotations

import io

import pytest

from iretrace.cli.terminal import Progress, only_ascii, wants_color


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "environment", "terminal", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("always", {"NO_COLOR": "1", "TERM": "dumb"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
    ],
)
def test_colour_follows_choice_then_environment_then_terminal(
    choice: str, environment: dict[str, str], terminal: bool, wanted: bool
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    assert wants_color(choice, stream, environment) is wanted


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream, {}) as progress:
        progress("working")
    assert stream.getvalue() == ""


def test_progress_is_silent_on_a_dumb_terminal() -> None:
    stream = Terminal()
    with Progress(stream, {"TERM": "dumb"}) as progress:
        progress("working")
    assert stream.getvalue() == ""


def test_progress_leaves_nothing_behind() -> None:
    stream = Terminal()
    with Progress(stream, {}) as progress:
        progress("working")
    assert stream.getvalue() == "\r\x1b[Kworking\r\x1b[K"


def test_a_stream_that_is_not_utf8_gets_ascii() -> None:
    assert only_ascii(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert not only_ascii(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
