"""Which values of disputed rules a question is asked for."""

from __future__ import annotations

from iretrace.machine import cpu
from iretrace.world.knobs import UNKNOWN_KNOBS, Values

A, B, C = (1 << number for number in list(UNKNOWN_KNOBS)[:3])


def asked(consulted: dict[int, int]) -> list[int]:
    """The values that are asked for, if these rules are consulted under them."""
    made = []
    for knobs in (values := Values()):
        made.append(knobs)
        values.consulted(knobs, consulted.get(knobs, 0))
    return made


def test_every_knob_of_the_machine_is_varied() -> None:
    assert {number for name, number in vars(cpu).items() if name.startswith("KNOB_")} == set(UNKNOWN_KNOBS)


def test_where_no_rule_is_consulted_one_value_will_do() -> None:
    assert asked({}) == [0]


def test_rules_are_varied_together_and_each_value_is_met_once() -> None:
    assert asked({0: A | B, A: A | B, B: A | B, A | B: A | B}) == [0, A, B, A | B]


def test_a_rule_that_is_consulted_only_with_another_one_set_is_varied_there() -> None:
    assert asked({0: A, A: A | C}) == [0, A, A | C]


def test_what_is_no_disputed_rule_is_not_varied() -> None:
    assert asked({0: 1 << 40}) == [0]
