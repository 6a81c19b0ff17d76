"""The order of the rooms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.rooms import SOURCE, check, objection


def test_the_rooms_keep_their_order() -> None:
    assert check(SOURCE) == []


@pytest.mark.parametrize(
    ("room", "module", "reason"),
    [
        ("explore", "iretrace.machine.cpu", "explore stands above machine"),
        ("machine", "iretrace.world.protocol", "machine stands above world"),
        ("verdict", "iretrace.subset", "verdict stands above subset"),
        ("linux", "iretrace.machine.cpu", "shares only vmcb"),
        ("linux", "iretrace.machine", "shares only vmcb"),
        ("kvm", "iretrace.world.product", "shares only vmcb"),
        ("linux", "iretrace.kvm.svm", "do not know each other"),
        ("kvm", "iretrace.linux.lex", "kvm stands above linux"),
        ("report", "iretrace.litmus.test", "report imports verdict only"),
        ("check", "iretrace.cli.main", "check stands above cli"),
        ("world", ".protocol", "relative import"),
        ("world", "iretrace.attic", "iretrace.attic is no room"),
    ],
)
def test_an_import_against_the_order_is_refused(room: str, module: str, reason: str) -> None:
    assert reason in objection(room, module)


@pytest.mark.parametrize(
    ("room", "module"),
    [
        ("linux", "iretrace.machine.vmcb"),
        ("kvm", "iretrace.world.protocol"),
        ("linux", "iretrace.verdict"),
        ("report", "iretrace.verdict"),
        ("cli", "iretrace.check"),
        ("world", "iretrace.explore.graph"),
        ("world", "dataclasses"),
        ("cli", "iretrace.__version__"),
    ],
)
def test_an_import_of_a_room_above_is_accepted(room: str, module: str) -> None:
    assert objection(room, module) == ""


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    room = tmp_path / "src" / "iretrace" / "explore"
    room.mkdir(parents=True)
    (room / "graph.py").write_text("import os\n\n\ndef f() -> None:\n    from iretrace.machine import cpu\n")
    (error,) = check(tmp_path / "src")
    assert error == "src/iretrace/explore/graph.py:5: explore stands above machine and knows nothing of it"


def test_a_directory_that_is_no_room_is_refused(tmp_path: Path) -> None:
    room = tmp_path / "src" / "iretrace" / "attic"
    room.mkdir(parents=True)
    (room / "old.py").write_text("")
    assert check(tmp_path / "src") == [
        "src/iretrace/attic/old.py:1: attic is no room; the rooms are listed in tools/rooms.py"
    ]
