"""What rooms share as plain data: numbers that must agree, and records that are packed and unpacked."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iretrace.check import view_fields
from iretrace.litmus import test as litmus
from iretrace.litmus.grammar import MAX_INSTRUCTIONS, STACKS, VIEW_FIELDS
from iretrace.machine import cpu as machine
from iretrace.machine.cpu import CODE_SIZE, MEMORY_WORDS, PAGE_WORDS, PAGES, Cpu, Machine
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.subset import RULES, pack, unpack
from iretrace.subset.check import main as check_subset
from iretrace.world.guest import VECTOR_PAGES
from tests.machine.rig import cpu, rig


def test_instructions_have_the_same_numbers_in_litmus_and_machine() -> None:
    ours = {name.removeprefix("OP_"): value for name, value in vars(machine).items() if name.startswith("OP_")}
    assert ours == {op.name: op.value for op in litmus.Op}


def test_the_operand_of_vmgexit_forward_is_the_same_in_litmus_and_machine() -> None:
    assert machine.VC_FORWARD == litmus.VC_FORWARD


def test_a_litmus_test_fits_into_the_machines_code() -> None:
    assert MAX_INSTRUCTIONS <= CODE_SIZE


def test_reach_can_ask_about_just_what_a_hypervisor_shows() -> None:
    assert view_fields() == VIEW_FIELDS


def test_every_handler_has_a_stack_page_of_its_own() -> None:
    assert MEMORY_WORDS == PAGES * PAGE_WORDS
    assert set(VECTOR_PAGES) == {litmus.VECTORS[name] for name in STACKS}
    assert len({*VECTOR_PAGES.values(), machine.PAGE_MAIN}) == len(VECTOR_PAGES) + 1


def test_the_machine_keeps_to_the_restricted_python(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/subset.md."""
    assert check_subset([]) == 0, capsys.readouterr().out


def test_every_rule_says_what_it_is_and_where_it_comes_from() -> None:
    assert len(RULES) > 20
    for rule in RULES.values():
        assert rule.text.endswith("."), rule.name
        assert rule.manual, rule.name
        assert rule.section, rule.name
        assert rule.confidence in ("read", "derived", "emulator", "memory"), rule.name


def test_no_two_knobs_share_a_bit() -> None:
    knobs = [value for name, value in vars(machine).items() if name.startswith("KNOB_")]
    assert len(set(knobs)) == len(knobs)


def values_of(kind: type[Any]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, 0xFF) for _ in fields(kind)))


@given(values_of(Vmcb))
def test_a_vmcb_survives_packing(values: tuple[int, ...]) -> None:
    assert pack(unpack(Vmcb, values)) == values


@given(values_of(Ghcb))
def test_a_ghcb_survives_packing(values: tuple[int, ...]) -> None:
    assert pack(unpack(Ghcb, values)) == values


@given(st.integers(0, MEMORY_WORDS - 1), st.integers(0, 0xFFFF_FFFF))
def test_a_processor_survives_packing_and_a_copy_is_its_own(word: int, value: int) -> None:
    made = cpu()
    made.memory[word] = value
    packed = pack(made)
    copy = unpack(Cpu, packed)
    assert pack(copy) == packed
    copy.memory[word] ^= 1
    assert pack(made) == packed
    hash(packed)


def test_records_are_packed_in_the_order_of_their_fields() -> None:
    assert pack(Vmcb(intercept_cr=1, rax=2))[0] == 1
    assert pack(Vmcb(intercept_cr=1, rax=2))[-1] == 2
    assert pack(rig().m) == pack(unpack(Machine, pack(rig().m)))
