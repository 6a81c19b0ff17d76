"""Blocks to Python: shapes of control flow, and what generated code holds."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from iretrace.linux.program import PAUSE, Model, Program, Retry, Run, Unmodelled
from tests.linux.csource import PATH, DictRules, program_of


def source(text: str, rules: DictRules | None = None) -> str:
    """The Python of function f."""
    program = program_of(text, rules)
    with suppress(Unmodelled):
        Run(program).call("f", 0, 0, 0, path=PATH)
    return program.source_of("f", PATH)


def test_code_without_loops_and_gotos_has_no_dispatch() -> None:
    text = "int f(int a, int b, int c) { int r = 0; if (a) r = 1; else if (b) { r = 2; if (c) return 9; } return r; }"
    assert "while" not in source(text)


def test_conditions_become_and_and_or() -> None:
    text = "int f(int a, int b, int c) { if (a && (b || !c)) return 1; return 2; }"
    (condition,) = re.findall(r"if (.*):", source(text))
    assert " and " in condition
    assert " or " in condition


def test_a_loop_is_one_state_of_a_dispatch() -> None:
    text = "int f(int a, int b, int c) { int n = 0; while (a < b) { a++; n += a; } return n; }"
    assert source(text).count("continue") == 2


def test_no_name_of_the_source_gets_into_the_python() -> None:
    """Hostile names could otherwise be Python."""
    text = "struct lambda { int yield; }; int f(struct lambda *None, int exec, int open) { return None->yield + exec; }"
    made = source(text)
    assert not set(re.findall(r"[A-Za-z_]\w*", made)) & {"lambda", "None", "exec", "open"}


def test_words_of_aligned_members_are_read_in_line() -> None:
    text = "struct s { long a; unsigned char b; }; int f(struct s *p, int b, int c) { return p->b; }"
    assert "C_load" not in source(text)
    assert "C_load" in source("int f(unsigned char *p, int b, int c) { return *p; }")


def test_arithmetic_that_cannot_overflow_does_not_wrap() -> None:
    assert "0xffffffff" not in source("int f(unsigned char a, unsigned char b, int c) { return a * 3 + b; }")


def deep(levels: int) -> str:
    """Nested ifs."""
    return "int f(int a, int b, int c) {" + "if (a != 7) { a++;" * levels + "b = 5;" + "}" * levels + " return a + b; }"


@pytest.mark.parametrize("levels", [50, 150])
def test_nesting_deeper_than_python_allows_still_works(levels: int) -> None:
    program = program_of(deep(levels))
    assert Run(program).call("f", 1000, 0, 0) == 1000 + levels + 5


def test_long_chains_of_returns_still_work() -> None:
    body = "".join(f"if (a == {n}) return {n * 2};" for n in range(400))
    assert Run(program_of(f"int f(int a) {{ {body} return -1; }}")).call("f", 399) == 798


# Pausing. --------------------------------------------------------------------------------------------------------

PAUSING = """
int vmrun(int);
struct s { int n; };
static int inner(struct s *p, int x) { int before = p->n; int r = vmrun(x); p->n += r; return before * 100 + r; }
int f(int a, int b) {
  struct s local = { a };
  int i, sum = 0;
  for (i = 0; i < 3; i++)
    sum = sum * 10 + inner(&local, i) + b;
  return sum + local.n * 100000;
}
"""


def plain(a: int, b: int, answers: list[int]) -> int:
    """What f computes if vmrun returns these answers."""
    total, n = 0, a
    for answer in answers:
        total = total * 10 + n * 100 + answer + b
        n += answer
    return total + n * 100000


def pausing_program() -> Program:
    """A program whose vmrun pauses."""
    return program_of(PAUSING, DictRules({"vmrun": Model(lambda run, x: PAUSE, pauses=True)}))


def started(run: Run, *args: int) -> object:
    """Call f, again after functions turned out to pause."""
    while True:
        try:
            return run.call("f", *args)
        except Retry:
            run.m.clear()
            run.frames = ()
            run.sp = Run(run.program).sp


def test_a_paused_call_goes_on_where_it_stopped() -> None:
    run = Run(pausing_program())
    assert started(run, 4, 1) is PAUSE
    assert run.resume(5) is PAUSE
    assert run.resume(6) is PAUSE
    assert run.resume(7) == plain(4, 1, [5, 6, 7])
    assert run.frames == ()
    assert run.m == {}


def test_frames_and_memory_are_all_that_a_pause_needs() -> None:
    program = pausing_program()
    first = Run(program)
    started(first, 4, 1)
    kept = dict(first.m), first.frames, first.sp
    assert first.resume(5) is PAUSE
    second = Run(program)
    second.m, second.frames, second.sp = kept
    assert hash(second.frames) == hash(kept[1])
    for answer in (8, 9):
        assert second.resume(answer) is PAUSE
    assert second.resume(1) == plain(4, 1, [8, 9, 1])


def test_a_frame_holds_only_the_locals_that_are_needed_later() -> None:
    """Dead locals would make equal states different."""
    text = "int vmrun(int); int f(int a, int b) { int dead = a * 3; b += dead; vmrun(b); return b; }"
    run = Run(program_of(text, DictRules({"vmrun": Model(lambda run, x: PAUSE, pauses=True)})))
    started(run, 1, 2)
    assert run.frames[0][2] == (5,)


def test_functions_become_resumable_once() -> None:
    program = pausing_program()
    run = Run(program)
    with pytest.raises(Retry):
        run.call("f", 4, 1)
    run = Run(program)
    assert run.call("f", 4, 1) is PAUSE


class Resting(Run):
    """A run that pauses where the n-th statement begins that calls C."""

    pause_at = -1
    rests = 0

    def rest(self) -> object:
        """Pause there."""
        self.rests += 1
        return PAUSE if self.rests == self.pause_at else None


def test_a_run_that_rests_between_two_statements_comes_to_the_same() -> None:
    program = program_of(PAUSING, DictRules({"vmrun": Model(lambda run, x: x + 5)}))
    program.declare_pausing("f")
    program.declare_pausing("inner")
    straight = Resting(program)
    assert straight.call("f", 4, 1) == plain(4, 1, [5, 6, 7])
    assert straight.rests == 6, "in each round one of f and one of inner"
    for number in range(1, straight.rests + 1):
        run = Resting(program)
        run.pause_at = number
        assert run.call("f", 4, 1) is PAUSE
        assert run.resume() == plain(4, 1, [5, 6, 7])
        assert (run.m, run.trace, run.sp) == (straight.m, straight.trace, straight.sp)


def test_functions_that_cannot_be_resumed_do_not_rest() -> None:
    run = Resting(program_of(PAUSING, DictRules({"vmrun": Model(lambda run, x: x + 5)})))
    run.call("f", 4, 1)
    assert run.rests == 0


def test_a_call_through_a_pointer_can_pause() -> None:
    text = """
    int vmrun(int); static int target(int x) { return vmrun(x) + 1; }
    static int (*const table[])(int) = { target };
    int f(int a, int b) { return table[0](a) * 10 + b; }
    """
    run = Run(program_of(text, DictRules({"vmrun": Model(lambda run, x: PAUSE, pauses=True)})))
    assert started(run, 1, 2) is PAUSE
    assert run.resume(4) == 52


def test_code_that_runs_before_and_after_a_pause_is_traced_once() -> None:
    program = pausing_program()
    run = Run(program)
    started(run, 4, 1)
    run.trace.clear()
    run.resume(5)
    lines = [line.line for block in run.trace for line in program.block_lines(block)]
    assert lines.count(4) == 4  # of inner: two statements of the first call, two of the second
