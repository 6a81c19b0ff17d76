"""Lowered functions as JSON: what is read is emitted as what was told, and nothing else is read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest

from iretrace.linux import ir, irtext
from iretrace.linux.answers import Model
from iretrace.linux.ctree import Pos
from iretrace.linux.irtext import Reader, Teller
from iretrace.linux.kept import UNREADABLE
from iretrace.linux.lower import FunctionLowering
from iretrace.linux.lowerings import read_callee, told_callee
from iretrace.linux.program import Program, Run, Unmodelled
from tests.linux.csource import PATH, DictRules, program_of

TEXT = """
struct s { int a; unsigned b : 3; signed c : 5; char text[20]; struct s *next; unsigned char odd[3]; } __x;
static const int table[3] = { 3, 5, 7 };
struct s copy(struct s from) { from.a = -from.a; return from; }
int one(int x) { return x + 1; }
int two(int x) { return x * 2; }
int asks(int x);
int f(int a, unsigned long long b)
{
  static int counted;
  struct s here = { .a = a, .c = -3, .text = "abc" }, there;
  int (*through)(int) = a > 2 ? one : two;
  char *at = here.odd + (a & 1);
  unsigned short small = b;
  int r = 0, i;
  here.next = &here;
  there = copy(*here.next);
  memset(there.text, a, sizeof(there.text));
  at[1] = small >> 3;
  here.b += 5;
  if ((a && b > 2) || !there.a)
    r = there.a - table[a & 1] / 3;
  for (i = 0; i < a; i++) {
    if (i == 3)
      goto out;
    r += through(i) % 7;
  }
  do
    r ^= ~(small << 2) | -here.c;
  while (--small > 3);
  switch (b) {
  case 0 ... 3:
    r += 10;
    break;
  case 7:
    r += __builtin_popcount(b);
  default:
    r += 20;
  }
out:
  counted++;
  return r + counted + here.b + at[1] + asks(r) + (a ? unknown(a) : 0);
}
"""


def asks(_run: Run, value: int) -> int:
    """An answer."""
    return value * 3


RULES = DictRules({"asks": Model(asks)}, {"f.counted": 4})
RULES.globals.clear()
FUNCTIONS = ("copy", "one", "two", "f")


class Kept:
    """What functions were lowered to, told and read again. change: of what was told."""

    def __init__(self, there: Program, here: Program) -> None:
        self.told: dict[str, Any] = {}
        self._there, self._here = there, here
        there.tell.append(self._tell)
        here.kept.append(self)

    def _tell(self, name: str, lowered: ir.Lowered) -> None:
        told = Teller(lambda called: told_callee(self._there, called)).function(lowered)
        self.told[name] = json.loads(json.dumps(told))

    def function(self, name: str) -> ir.Lowered | None:
        """Read, with what it names."""
        for made in self._there.space.all():
            self._here.space.foresee(*made)
        for address in self._there.addresses():
            self._here.adopt_address(*address)
        return read(self.told[name], self._here) if name in self.told else None

    def content(self, own: str) -> tuple[bool, dict[int, int | None]] | None:
        """Of what was made there."""
        found = {made.own: made for made, _ in self._there.globals.filled()}
        if own not in found:
            return None
        words = found[own].words.items()
        return found[own].writable, {at: None if callable(word) else word for at, word in words}


def read(told: Any, program: Program | None = None) -> ir.Lowered:
    """It, or one of UNREADABLE."""
    program = program or program_of(TEXT, RULES)
    return Reader(lambda called: read_callee(program, called, {}), {}).function(told)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The functions of the text."""
    program = program_of(TEXT, RULES)
    kept = Kept(program, program_of(TEXT, RULES))
    for name in [program.callee(name, Pos(PATH, 0)).name for name in FUNCTIONS]:
        program.emit(name)
    return kept.told


def test_what_was_read_is_emitted_as_what_was_told() -> None:
    there, here = program_of(TEXT, RULES), program_of(TEXT, RULES)
    kept = Kept(there, here)
    lowered: list[str] = []
    here.tell.append(lambda name, _: lowered.append(name))
    for a, b in ((0, 0), (1, 7), (2, 300), (5, 2)):
        results = []
        for program in (there, here):
            try:
                results.append(Run(program).call("f", a, b, path=PATH))
            except Unmodelled as error:
                results.append((error.what, error.where))
        assert results[0] == results[1]
    assert len(kept.told) == 4
    assert not lowered
    assert not here.globals.filled()
    for name in FUNCTIONS:
        assert here.source_of(name, PATH) == there.source_of(name, PATH) != ""
    assert [block.statements for block in here.blocks] == [block.statements for block in there.blocks]
    assert [block.conditions for block in here.blocks] == [block.conditions for block in there.blocks]


def test_a_word_that_nobody_could_compute_is_asked_of_the_object_itself() -> None:
    text = """
static int (*const table[2])(int) = { 0, unknown };
int one(int x) { return x + 1; }
int f(int at) { return table[at] == one; }
"""
    there, here = program_of(text), program_of(text)
    Kept(there, here)
    errors: list[str] = []
    for program in (there, here):
        assert Run(program).call("f", 0, path=PATH) == 0
        made = len(program.globals.filled())
        with pytest.raises(Unmodelled) as error:
            Run(program).call("f", 1, path=PATH)
        errors.append(f"{made} {len(program.globals.filled())} {error.value}")
    assert errors[0].startswith("1 1 ")
    assert errors[1] == errors[0].replace("1 1 ", "0 1 ")


def test_a_condition_is_negated_in_a_function_that_is_lowered_here() -> None:
    """What was told was lowered without."""
    text = "int f(int a)\n{\n  if (a)\n    return 1;\n  return 2;\n}\n"
    program = program_of(text)
    Kept(program, program)
    assert Run(program).call("f", 1, path=PATH) == 1
    (condition,) = (one for block in program.blocks for one in block.conditions)
    program.invert(condition)
    assert Run(program).call("f", 1, path=PATH) == 2


def test_lines_are_where_they_stand_now(told: dict[str, Any]) -> None:
    (one,) = (one for name, one in told.items() if "_one_" in name)
    found = Reader(str, {(PATH, 5): 17}).function(one)
    assert found.pos == Pos(PATH, 17)
    assert {op.pos for op in found.entry.ops if isinstance(op, ir.Mark)} == {Pos(PATH, 17)}


HOSTILE = [
    ["const", "1", "i32", False],
    ["const", 1.0, "i32", False],
    ["const", True, "i32", False],
    ["const", 1, "x32", False],
    ["const", 1, "i0", False],
    ["const", 1, "i513", False],
    ["const", 1, "i32", 0],
    ["local", -1, "i32", 0, 1, True],
    ["local", 1 << 40, "i32", 0, 1, True],
    ["local", "0;import os", "i32", 0, 1, True],
    ["frame", -8],
    ["load", ["frame", 0], 0, 0, "i32", True, 8],
    ["load", ["frame", 0], 0, 1 << 40, "i32", True, 8],
    ["load", ["frame", 0], 1 << 90, 8, "i32", True, 8],
    ["load", ["frame", 0], 0, 8, "i32", 1, 8],
    ["**", ["const", 9, "i32", False], ["const", 9, "i32", False], "i32"],
    ["<<", ["const", 9, "i32", False], ["const", 1 << 40, "i32", False], "i32"],
    [">>", ["const", 9, "i32", False], ["const", -1, "i32", False], "i32"],
    [")or(", ["const", 9, "i32", False], ["const", 9, "i32", False]],
    ["is", ["const", 9, "i32", False], ["const", 9, "i32", False]],
    ["convert", ["const", 9, "i32", False]],
    ["call"],
    [],
    7,
]


@pytest.mark.parametrize("expr", HOSTILE)
def test_what_no_teller_tells_is_no_expression(expr: Any) -> None:
    value = ["return", 1, expr]
    with pytest.raises(UNREADABLE):
        read(["f", PATH, 1, 0, 0, [], [[[], value, []]]])


@pytest.mark.parametrize(
    "block",
    [
        [[["call", 1, -1, "C_ffs", []]], ["unreachable"], []],
        [[["set", 1, "x", ["frame", 0]]], ["unreachable"], []],
        [[["touch", 1, ["frame", 0], 0, 8, "True", True]], ["unreachable"], []],
        [[["fill", 1, ["frame", 0], "8"]], ["unreachable"], []],
        [[["copy", 1, ["frame", 0], ["frame", 0], -1]], ["unreachable"], []],
        [[["mark", "1"]], ["unreachable"], []],
        [[["exec", 1]], ["unreachable"], []],
        [[], ["jump", 1], []],
        [[], ["jump", -1], []],
        [[], ["choose", ["frame", 0], [["1", 2, 0]], 0], []],
        [[], ["fall"], []],
        [[], ["unreachable"], [0]],
    ],
)
def test_what_no_teller_tells_is_no_block(block: Any) -> None:
    with pytest.raises(UNREADABLE):
        read(["f", PATH, 1, 0, 0, [], [block]])


@pytest.mark.parametrize(
    "callee",
    [
        ["c", "f(R);evil()", PATH],
        ["c", "", PATH],
        ["c", "\ufb01", PATH],
        ["c", 1, PATH],
        ["c", "f"],
        ["python", "f", None],
        ["python", "asks"],
        ["python", "asks", [PATH, 1]],
        ["python", "asks", [PATH, "x", "f", [], [], []]],
        ["python", "asks", [PATH, 1, "f", ["a"], ["x"], [0]]],
        "C_fail",
        "print",
        "f_one_9674f1f8",
        None,
        7,
    ],
)
def test_what_no_teller_tells_is_no_callee(callee: Any) -> None:
    with pytest.raises(UNREADABLE):
        read(["f", PATH, 1, 0, 0, [], [[[["call", 1, None, callee, []]], ["unreachable"], []]]])


def _places(value: Any) -> Iterator[tuple[list[Any], int]]:
    for number, part in enumerate(value):
        yield value, number
        if isinstance(part, list):
            yield from _places(part)


STRANGE = [-1, 1 << 70, 3, "evil()", "mark", None, True, [], [0], ["const", 3, "u8", False], 0.5]


def _changed(chance: random.Random, told: Any) -> Any:
    """Something told, at some places of it something else."""
    value = deepcopy(told)
    for _ in range(chance.choice((1, 1, 2, 5))):
        where, number = chance.choice(list(_places(value)))
        where[number] = deepcopy(chance.choice(STRANGE))
    return value


def test_a_function_in_which_anything_was_changed_is_refused_or_emitted(told: dict[str, Any]) -> None:
    """Python is made of it, or it is not there: nothing else happens."""
    chance, emitted = random.Random(1), 0
    for _ in range(1000):
        name = chance.choice(sorted(told))
        value, function = _changed(chance, told[name]), name.split("_")[1]
        try:
            read(value)
        except UNREADABLE:
            continue
        program = program_of(TEXT, RULES)
        Kept(program, program).told[name] = value
        assert program.callee(function, Pos(PATH, 0)).name == name
        with suppress(Unmodelled):
            program.emit(name)
        assert "evil" not in program.source_of(function, PATH)
        emitted += 1
    assert 50 < emitted < 950


def test_only_what_functions_are_lowered_to_is_told() -> None:
    """What tidying blocks makes of them is not."""
    program = program_of("int f(int a)\n{\n  return a;\n}\n")
    definition = program.layout.function("f", PATH)
    assert definition is not None
    lowered = FunctionLowering(program, PATH, "f").function_body(definition)
    lowered.entry.ops.append(ir.Set(Pos(PATH, 1), 0, ir.Expr()))
    with pytest.raises(TypeError, match="no expression"):
        irtext.Teller(str).function(lowered)


def test_programs_keep_nothing_by_themselves() -> None:
    program: Program = program_of("int f(int a)\n{\n  return a;\n}\n")
    assert not program.kept
    assert not program.tell
