"""Parts of what is kept of host steps, without a tree; tests/trees/test_kept.py has the whole."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest

from iretrace.linux import kept
from iretrace.linux.kept import Keys, Renamed, setting_of
from iretrace.linux.notes import Uses
from iretrace.linux.sender import EventSender
from iretrace.linux.states import State
from iretrace.linux.turning import Asked
from iretrace.world.protocol import NO_HOST_DEBUG, NO_SENDER, Cause, Pause, PauseKind

STATE = State(((8, 1),), (("f", 2, (3, 4)),), True, True, 5)
ASKED = Asked(STATE, (1, 2), (3,), Cause.VMEXIT, (NO_SENDER, EventSender("nmi", (1,))), NO_HOST_DEBUG)


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
    asked: tuple[Any, ...], schedule: tuple[tuple[int, int, int], ...]
) -> None:
    same = Asked(replace(STATE), *ASKED[1:])
    assert Keys().of(ASKED, ()) == Keys().of(same, ()) != Keys().of(Asked(*asked), schedule)


def test_the_setting_depends_on_the_first_pause_and_on_what_is_told() -> None:
    first = setting_of(("a", 1), pause(STATE))
    assert first == setting_of(("a", 1), pause(replace(STATE)))
    others = [
        setting_of(("a", 2), pause(STATE)),
        setting_of(("a", 1), pause(replace(STATE, sp=6))),
        setting_of(("a", 1), pause(STATE)._replace(vmcb=(3,))),
    ]
    assert first not in others


UNDER, BEHIND, OFFERS, SENDER = (Uses(name, frozenset()) for name in (b"a", b"b", b"c", b"d"))


def behind(
    places: tuple[str, str] = ("p", "p"),
    same: tuple[Uses, ...] | None = (UNDER,),
    nodes: tuple[Uses | None, ...] = (UNDER, BEHIND, OFFERS, SENDER),
    frames: tuple[int, ...] = (),
    landing: tuple[int, int, int] = (1, 0, 2),
) -> tuple[Uses, ...] | None:
    """On what a step rests whose parent is step 5, where that goes on at place p behind a landing of a sender."""
    one: Any = object.__new__(kept.Kept)
    one._changed, one._nodes, one._same = {9}, dict(enumerate(nodes)), {5: same}
    one._openings, one._places = {5: {(1, 0, 2): ("p", 3)}}, Renamed()
    one._places.alike(*places)
    line = kept.Line([0, 1, 2], frames, 0, 0, 0, [], [], [], 0, 0, 0, [landing], 5)
    found: tuple[Uses, ...] | None = one._behind(line, None)
    return found


def test_a_step_stands_that_changes_nowhere_behind_its_last_landing() -> None:
    assert behind() == (UNDER, SENDER, BEHIND, OFFERS)


def test_a_step_falls_whose_parent_falls() -> None:
    assert behind(same=None) is None


def test_a_step_falls_behind_a_place_that_has_another_name() -> None:
    """A function that has changed is under way there."""
    assert behind(places=("q", "p")) is None


@pytest.mark.parametrize("node", [1, 2, 3])
def test_a_step_falls_that_rests_on_a_change_behind_its_last_landing(node: int) -> None:
    nodes = [UNDER, BEHIND, OFFERS, SENDER]
    assert behind(nodes=(*nodes[:node], None, *nodes[node + 1 :])) is None


def test_a_step_falls_that_begins_inside_of_a_function_that_has_changed() -> None:
    assert behind(frames=(9,)) is None


def test_a_step_falls_that_its_parent_does_not_offer() -> None:
    assert behind(landing=(1, 1, 2)) is None


def test_a_text_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = zlib.compress(b"a\nb")
    assert kept.lines_of(text) == ["a", "b"]
    monkeypatch.setattr(kept, "MOST_BYTES", 2)
    with pytest.raises(ValueError, match="too long"):
        kept.lines_of(text)
