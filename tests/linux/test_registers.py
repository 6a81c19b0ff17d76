"""Registers that a step only moves: what counts as looking, and what a remembered result says for other values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iretrace.linux.registers import MOVED, STALE, Found, Hidden, Memo, general, opaque
from iretrace.linux.unmodelled import Unmodelled
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import pack
from iretrace.world.protocol import Packed, Pause, PauseKind

RIP, RSP, RFLAGS, RAX = MOVED
WORD = 0x1000
SAVED = 0x2000
OTHER = 0x3000


@pytest.mark.parametrize(
    "use",
    [
        lambda v: v + 1,
        lambda v: 1 + v,
        lambda v: v & 0x200,
        lambda v: v >> 3,
        lambda v: 1 << v,
        lambda v: v == 7,
        lambda v: 7 != v,
        lambda v: v < 9,
        lambda v: {}.get(v),
        lambda v: -v,
        lambda v: ~v,
        lambda v: v.bit_length(),
    ],
)
def test_every_use_of_an_opaque_number_is_noted(use: Callable[[int], object]) -> None:
    looked: set[int] = set()
    assert use(opaque(7, RIP, looked)) == use(7)
    assert looked == {RIP}


def test_a_copy_is_no_look() -> None:
    looked: set[int] = set()
    memory: dict[int, int] = {WORD: opaque(7, RIP, looked)}
    memory[OTHER] = memory.get(WORD) or 0
    assert looked == set()


def step(rip: int, work: Callable[[dict[int, int]], None], enters: bool = True) -> tuple[Hidden, tuple[object, ...]]:
    hidden = Hidden({WORD: RIP}, (SAVED,))
    memory = {WORD: rip, SAVED: 0}
    hidden.hide(memory, stale=True)
    work(memory)
    return hidden, hidden.reveal(memory, enters)


def save(memory: dict[int, int]) -> None:
    memory[SAVED] = memory[WORD]


def test_a_register_that_comes_back_is_moved() -> None:
    hidden, moved = step(5, save)
    assert moved == ((RIP, RIP),)
    assert hidden.looked == set()


def test_a_register_that_stays_behind_somewhere_else_counts_as_looked_at() -> None:
    def keep(memory: dict[int, int]) -> None:
        save(memory)
        memory[OTHER] = memory[WORD]

    assert step(5, keep)[0].looked == {RIP}


def test_a_saved_copy_counts_where_the_guest_does_not_run_next() -> None:
    assert step(5, save, enters=False)[0].looked == {RIP}


def test_a_saved_register_that_is_used_before_it_is_saved_is_not_modelled() -> None:
    def use(memory: dict[int, int]) -> None:
        memory[WORD] = memory[SAVED] + 1

    with pytest.raises(Unmodelled, match="before"):
        step(5, use)


def test_a_register_that_nobody_saves_is_not_modelled_either() -> None:
    def restore(memory: dict[int, int]) -> None:
        memory[WORD] = memory[SAVED]

    with pytest.raises(Unmodelled):
        step(5, restore)
    assert STALE not in MOVED


def vmcb(rip: int, rflags: int) -> Packed:
    made: Packed = pack(Vmcb(rip=rip, rflags=rflags, asid=1))
    return made


RESULT = Pause(PauseKind.ENTER, "private", vmcb(5, 2), (), (), (), False, (), False, 0, ())


def test_a_result_holds_for_all_values_of_what_was_not_looked_at() -> None:
    memo: Memo[Found] = Memo()
    memo.add("key", vmcb(5, 2), frozenset({RFLAGS}), Found(RESULT, ((RIP, RIP),)))
    found = memo.find("key", vmcb(6, 2))
    assert found is not None
    assert found.of(vmcb(6, 2)) == RESULT._replace(vmcb=vmcb(6, 2))
    assert memo.find("key", vmcb(6, 0x202)) is None
    assert memo.find("other", vmcb(5, 2)) is None


def test_zero_is_told_apart() -> None:
    assert general(vmcb(5, 2)) == general(vmcb(6, 2)) != general(vmcb(0, 2))
