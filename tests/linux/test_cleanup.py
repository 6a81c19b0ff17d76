"""Variables with a cleanup (guards): the function is called at every way out of the scope, once, in reverse order.

The functions of TEXT log what they do as decimal digits; gcc says what is right.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from iretrace.linux import ctree
from iretrace.linux.answers import Storage
from iretrace.linux.parse import ParseError, parse_translation_unit
from iretrace.linux.unmodelled import Unmodelled
from tests.linux.csource import DictRules, call

TEXT = """
typedef struct { int id; } lock_t;
long log;
void note(int digit) { log = log * 10 + digit; }
lock_t lock(int id) { lock_t held = { id }; note(id); return held; }
void unlock(lock_t *held) { note(held->id + 4); }
void forget(int *p) { note(9); *p = 0; }
#define guard(name, id) lock_t name __attribute__((__cleanup__(unlock))) = lock(id)
#define scoped_guard(id, label) \\
  for (guard(scope, id); 1; ({ goto label; })) if (0) { label: break; } else

int falls_out(int x) { { guard(a, 1); guard(b, 2); note(3); } note(4); return 0; }
int returns(int x) { guard(a, 1); if (x) { guard(b, 2); return 3; } note(4); return 0; }
int value_first(int x) { int n __attribute__((cleanup(forget))) = x + 7; return n; }
int breaks(int x) { while (1) { guard(a, 1); if (x) break; guard(b, 2); break; } note(4); return 0; }
int continues(int x) { for (int i = 0; i < 2; i++) { guard(a, 1); if (x) continue; note(4); } return 0; }
int for_own(int x) { for (lock_t a __attribute__((cleanup(unlock))) = lock(1); x; x--) if (x == 2) break; return 0; }
int goes_back(int x) { again: { guard(a, 1); if (x-- > 0) goto again; } guard(b, 2); return 0; }
int goes_out(int x) { guard(a, 1); { guard(b, 2); if (x) goto out; note(4); } out: note(3); return 0; }
int scoped(int x) { scoped_guard(1, l1) { if (x == 1) return 3; if (x == 2) break; note(4); } note(3); return 0; }
int nested(int x) { scoped_guard(1, l1) { scoped_guard(2, l2) { if (x) break; note(4); } note(3); } return 0; }
int switched(int x) { switch (x) { case 0: { guard(a, 1); break; } case 1: note(3); default: note(2); } return 0; }
int same_name(int x) { guard(a, 1); { guard(a, 2); if (x) return 3; } return 0; }
int in_expression(int x) { int n = ({ guard(a, 1); x + 1; }); note(n); return n; }
int several(int x) { int a __attribute__((cleanup(forget))) = 1, b, c __attribute__((cleanup(forget))) = 2; return a; }
int infinite(int x) { for (;;) { guard(a, 1); if (x++ > 1) return x; } }
"""
FUNCTIONS = """
    falls_out returns value_first breaks continues for_own goes_back goes_out scoped nested switched same_name
    in_expression several infinite
""".split()
RULES = DictRules(globals={"log": Storage("zero")})


def expanded(text: str) -> str:
    """The text without directives: the two macros of it, expanded."""
    text = re.sub(r"#define.*\\\n.*\n|#define.*\n", "", text)
    text = re.sub(
        r"scoped_guard\((\d), (\w+)\)", r"for (guard(scope, \1); 1; ({ goto \2; })) if (0) { \2: break; } else", text
    )
    return re.sub(r"guard\((\w+), (\d)\)", r"lock_t \1 __attribute__((__cleanup__(unlock))) = lock(\2)", text)


def ours(function: str, x: int) -> tuple[object, object]:
    """What a function returns and what it logs."""
    both = f"{expanded(TEXT)} long logged(int x) {{ log = 0; {function}(x); return log; }}"
    return call(both, function, x, rules=RULES), call(both, "logged", x, rules=RULES)


def test_cleanups_run_as_gcc_runs_them(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    calls = [(function, x) for function in FUNCTIONS for x in range(3)]
    lines = [f'log = 0; printf("%d ", {name}({x})); printf("%ld\\n", log);' for name, x in calls]
    main = f"#include <stdio.h>\n#define log log_\n{TEXT}\nint main(void) {{ {' '.join(lines)} return 0; }}\n"
    (tmp_path / "a.c").write_text(main)
    subprocess.run(["gcc", "-w", "-o", str(tmp_path / "a"), str(tmp_path / "a.c")], check=True)
    printed = subprocess.run([str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [f"{result} {logged}" for result, logged in (ours(*each) for each in calls)] == printed


@pytest.mark.parametrize(
    ("function", "x", "result", "log"),
    [
        ("falls_out", 0, 0, 123654),
        ("returns", 1, 3, 1265),
        ("value_first", 0, 7, 9),
        ("goes_out", 1, 0, 12635),
        ("scoped", 0, 0, 1453),
        ("scoped", 1, 3, 15),
    ],
)
def test_a_cleanup_runs_at_the_end_of_its_scope(function: str, x: int, result: int, log: int) -> None:
    assert ours(function, x) == (result, log)


def test_a_goto_into_the_scope_of_a_guard_is_undetermined() -> None:
    text = (
        f"{expanded(TEXT)} int f(int x) {{ if (x) goto in; {{ {expanded('guard(a, 1)')}; in: note(2); }} return 0; }}"
    )
    assert call(text, "f", 0, rules=RULES) == 0
    with pytest.raises(Unmodelled, match="goto in into the scope of a variable with a cleanup"):
        call(text, "f", 1, rules=RULES)


def test_a_case_in_the_scope_of_a_guard_is_undetermined() -> None:
    text = expanded(f"{TEXT} int f(int x) {{ switch (x) {{ case 0: guard(a, 1); case 1: note(2); }} return 0; }}")
    with pytest.raises(Unmodelled, match="a case label in the scope of a variable with a cleanup"):
        call(text, "f", 1, rules=RULES)


def test_a_cleanup_of_something_that_has_no_scope_is_refused() -> None:
    for text in ("int a __attribute__((cleanup(f)));", "int f(void) { static int a __cleanup(f) = 0; return a; }"):
        with pytest.raises(ParseError, match="a cleanup attribute"):
            parse_translation_unit(text)


def test_a_cleanup_is_a_call_with_the_address_of_the_variable() -> None:
    (function,) = parse_translation_unit("void f(void) { __auto_type p __cleanup(g) = 1; }")
    assert isinstance(function, ctree.Function)
    (declaration,) = function.body.items
    assert isinstance(declaration, ctree.Declaration)
    assert isinstance(declaration.cleanup, ctree.Call)
    assert declaration.cleanup.function == ctree.Name(declaration.pos, "g")
    assert declaration.cleanup.args == (ctree.Unary(declaration.pos, "&", ctree.Name(declaration.pos, "p")),)
