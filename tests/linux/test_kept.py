"""Parts of what is kept of host steps, without a tree; tests/trees/test_kept.py has the whole."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest

from iretrace.linux import kept
from iretrace.linux.kept import Keys, Renamed, setting_of
from iretrace.linux.sender import EventSender
from iretrace.linux.states import State
from iretrace.world.protocol import NO_HOST_DEBUG, NO_SENDER, Cause, Pause, PauseKind

STATE = State(((8, 1),), (("f", 2, (3, 4)),), True, True, 5)
ASKED = (STATE, (1, 2), (3,), Cause.VMEXIT, (NO_SENDER, EventSender("nmi", (1,))), NO_HOST_DEBUG)


def pause(private: State) -> Pause:
    """At VMRUN."""
    return Pause(PauseKind.ENTER, private, (1,), (2,), (), (), False, (), False, 0, ())


def test_places_have_other_names_one_for_one() -> None:
    names = Renamed()
    assert names.alike("a", "b")
    assert names.alike("a", "b")
    assert names.alike("c", "c")
    assert not names.alike("a", "c")
    assert not names.alike("d", "b")
    assert not names.alike("b", "c")


@pytest.mark.parametrize(
    ("asked", "schedule"),
    [
        ((replace(STATE, words=((8, 2),)), *ASKED[1:]), ()),
        ((replace(STATE, frames=(("f", 2, (3, 5)),)), *ASKED[1:]), ()),
        ((replace(STATE, gif=False), *ASKED[1:]), ()),
        ((*ASKED[:1], (1, 3), *ASKED[2:]), ()),
        ((*ASKED[:2], (4,), *ASKED[3:]), ()),
        ((*ASKED[:3], Cause.WAKE, *ASKED[4:]), ()),
        ((*ASKED[:4], (NO_SENDER, EventSender("nmi", (2,))), ASKED[5]), ()),
        ((*ASKED[:5], NO_HOST_DEBUG._replace(dr6=1)), ()),
        (ASKED, ((1, 1, 1),)),
    ],
)
def test_the_key_of_a_step_depends_on_all_that_it_is_asked(
    asked: tuple[object, ...], schedule: tuple[tuple[int, int, int], ...]
) -> None:
    same = (replace(STATE), *ASKED[1:])
    assert Keys().of(ASKED, ()) == Keys().of(same, ()) != Keys().of(asked, schedule)


def test_the_setting_depends_on_the_first_pause_and_on_what_is_told() -> None:
    first = setting_of(("a", 1), pause(STATE))
    assert first == setting_of(("a", 1), pause(replace(STATE)))
    others = [
        setting_of(("a", 2), pause(STATE)),
        setting_of(("a", 1), pause(replace(STATE, sp=6))),
        setting_of(("a", 1), replace(pause(STATE), vmcb=(3,))),
    ]
    assert first not in others


def test_a_text_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = zlib.compress(b"a\nb")
    assert kept._lines(text) == ["a", "b"]
    monkeypatch.setattr(kept, "MOST_BYTES", 2)
    with pytest.raises(ValueError, match="too long"):
        kept._lines(text)
