"""Programs: traces, conditions, negation, addresses."""

from __future__ import annotations

import pytest

from iretrace.linux.ctree import Pos
from iretrace.linux.program import ConditionId, Program, Run, Unmodelled
from tests.linux.csource import PATH, program_of

TEXT = """
int f(int a, int b)
{
  int r = 0;
  if (a && b)
    r = 1;
  while (a > 0)
    a--;
  switch (b) {
  case 1:
    r += 10;
    break;
  default:
    r += 20;
  }
  return a ? r : -r;
}
"""


def executed(program: Program, *args: int) -> tuple[object, list[int], set[ConditionId]]:
    """The result of f, the lines and the conditions that it executed."""
    run = Run(program)
    result = run.call("f", *args, path=PATH)
    lines = [line.line for block in run.trace for line in program.block_lines(block)]
    return result, lines, program.blocks.conditions(run.trace)


def condition(line: int, ordinal: int = 0) -> ConditionId:
    """A condition of f."""
    return ConditionId(PATH, line, ordinal, "f")


def test_the_trace_lists_statements_in_the_order_of_execution() -> None:
    _, lines, _ = executed(program_of(TEXT), 1, 1)
    assert lines == [4, 5, 6, 7, 8, 7, 9, 11, 12, 16]


def test_a_called_function_is_traced_between_the_statements_around_the_call() -> None:
    text = """
int g(int x)
{
  return x + 1;
}
int f(int a, int b)
{
  a++;
  b = g(a);
  b++;
  return b;
}
"""
    assert executed(program_of(text), 1, 1)[1] == [8, 9, 4, 10, 11]


def test_lines_come_with_function_and_text() -> None:
    program = program_of(TEXT, line_text=lambda path, line: TEXT.split("\n")[line - 1].strip())
    run = Run(program)
    run.call("f", 0, 0)
    line = program.block_lines(run.trace[0])[0]
    assert (line.path, line.line, line.function, line.text) == (PATH, 4, "f", "int r = 0;")


def test_only_conditions_that_were_decided_count_as_executed() -> None:
    program = program_of(TEXT)
    _, _, short = executed(program, 0, 1)
    assert short == {condition(5), condition(7), condition(10), condition(16)}
    _, _, both = executed(program, 1, 2)
    assert both == {condition(5), condition(5, 1), condition(7), condition(13), condition(16)}


@pytest.mark.parametrize(
    ("negated", "args", "result"),
    [
        (condition(5), (0, 1), -11),
        (condition(5, 1), (1, 0), -21),
        (condition(7), (1, 0), 20),
        (condition(10), (0, 1), -20),
        (condition(13), (0, 7), -10),
        (condition(16), (0, 1), 10),
    ],
)  # fmt: skip
def test_a_negated_condition_goes_the_other_way(negated: ConditionId, args: tuple[int, int], result: int) -> None:
    assert executed(program_of(TEXT, negate=negated), *args)[0] == result


def test_ids_of_conditions_do_not_depend_on_what_is_negated() -> None:
    plain = executed(program_of(TEXT), 1, 1)[2]
    negated = executed(program_of(TEXT, negate=condition(16)), 1, 1)[2]
    assert plain == negated


def test_constant_conditions_are_no_conditions() -> None:
    text = "int f(int a, int b) { if (0) a = 5; if (sizeof(long) == 8 && b) a++; do a++; while (0); return a; }"
    assert executed(program_of(text), 1, 1)[2] == {ConditionId(PATH, 1, 0, "f")}


def test_a_function_has_one_address() -> None:
    program = program_of(
        "int g(int x) { return x; } int f(void) { int (*p)(int) = g; return p == g && p == &g && p(7) == 7; }"
    )
    assert Run(program).call("f") == 1
    run = Run(program)
    assert run.call_address(program.address_of("g", PATH), 9) == 9


def test_a_program_serves_many_runs() -> None:
    program = program_of("struct s { int x; }; int f(struct s *p) { return p->x++; }")
    at = program.space.allocate("s", 8).address
    first, second = Run(program), Run(program)
    assert [first.call("f", at), first.call("f", at), second.call("f", at)] == [0, 1, 0]


def test_an_error_leaves_the_stack_where_it_was() -> None:
    program = program_of("int f(int n) { int a[4] = { n }; return a[0] / n; }")
    run = Run(program)
    before = run.sp
    with pytest.raises(Unmodelled):
        run.call("f", 0)
    assert run.sp == before


def test_an_error_in_a_model_is_not_taken_for_one_of_the_c() -> None:
    from iretrace.linux.program import Model
    from tests.linux.csource import DictRules

    def broken(run: Run) -> int:
        raise UnboundLocalError("a mistake in Python")

    program = program_of("int m(void); int f(void) { return m(); }", DictRules({"m": Model(broken)}))
    with pytest.raises(UnboundLocalError):
        Run(program).call("f")


def test_a_renamed_function_is_called_as_before_and_stands_elsewhere() -> None:
    """Where it is another one than in some other process, its places must not be taken for those there."""
    program = program_of(TEXT)
    before = executed(program, 1, 1)
    name = next(name for name in program.namespace if name.startswith("f_f_"))
    file = program.namespace[name].__code__.co_filename
    program.rename(name)
    assert executed(program, 1, 1) == before
    assert program.namespace[name].__code__.co_filename != file
    other = program_of(TEXT)
    other.rename(name)
    executed(other, 1, 1)
    assert other.namespace[name].__code__.co_filename not in (file, program.namespace[name].__code__.co_filename)


def test_of_two_functions_of_one_name_in_a_file_neither_is_known_elsewhere_by_it() -> None:
    """Which of them comes first has the name; who comes next has its line in it."""
    texts = ("int f(int a, int b)\n{\n  return 1;\n}\n", "\n\nint f(int a, int b)\n{\n  return 2;\n}\n")
    program, other = map(program_of, texts)
    first = program.callee("f", Pos(PATH, 0)).name
    assert program.c_name(first) == ("f", PATH)
    program.layout = other.layout
    second = program.callee("f", Pos(PATH, 0)).name
    assert second == f"{first}_3"
    assert program.c_name(first) is program.c_name(second) is None
    results = [program.namespace[name](Run(program), 0, 0) for name in (first, second)]
    assert results == [1, 2]
