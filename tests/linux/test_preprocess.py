"""Conditionals and macros by name, on mini trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux import expand
from iretrace.linux.expand import make_macro
from iretrace.linux.lex import lex
from iretrace.linux.preprocess import Use
from iretrace.linux.source import Source
from iretrace.verdict import InputError
from tests.linux.mini import SVM, SVM_H, mini_index

KVM_H = "include/linux/kvm_host.h"
GENERIC_H = "include/asm-generic/bitops.h"
X86_H = "arch/x86/include/asm/bitops.h"


def expanded(macros: str, text: str) -> str:
    """`text` with the macros that lines of #define give."""
    known = {}
    for line in macros.strip().splitlines():
        name, _, rest = line.removeprefix("#define ").partition(" ")
        if "(" in name or "(" in line.split()[1]:
            name, rest = line.removeprefix("#define ").split("(", 1)
            rest = "(" + rest
        else:
            rest = " " + rest
        known[name] = make_macro(name, rest, "a.h", 1)
    return " ".join(token.text for token in expand.expand(lex(text, "a.c"), known.get))


def active(tmp_path: Path, text: str, config: dict[str, str] | None = None, **files: str) -> str:
    """What is left of svm.c's text under a configuration, lines joined."""
    paths = {"kvm": KVM_H, "generic": GENERIC_H, "x86": X86_H, "svm": SVM_H}
    index = mini_index(tmp_path, {SVM: text} | {paths[name]: body for name, body in files.items()}, config)
    source = next(source for source in index.sources if source.path == SVM)
    return " ".join(index.preprocessor.active_text(source, 0, len(source.text)).replace("\\\n", " ").split())


# Expansion. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("macros", "text", "result"),
    [
        ("#define A 1", "A B", "1 B"),
        ("#define F(x) x + x", "F(a b) F", "a b + a b F"),
        ("#define F(x, y) [y x]", "F((a, b), c)", "[ c ( a , b ) ]"),
        ("#define F(x) #x", 'F( a  "b\\n" )', '"a \\"b\\\\n\\""'),
        ("#define F(x) x ## _t", "F(a)", "a_t"),
        ("#define F(x, y) x ## y", "F(, b) F(a,) F(,)", "b a"),
        ("#define G 2\n#define F(x) x + k_ ## x", "F(G)", "2 + k_G"),
        ("#define F(x, ...) f(x, __VA_ARGS__)", "F(a, b, c)", "f ( a , b , c )"),
        ("#define F(x, ...) f(x, ##__VA_ARGS__)", "F(a) F(a, b)", "f ( a ) f ( a , b )"),
        ("#define F(x, rest...) f(x, ##rest)", "F(a) F(a, b, c)", "f ( a ) f ( a , b , c )"),
        ("#define F(x, ...) f(x __VA_OPT__(, g(__VA_ARGS__)))", "F(a) F(a, b)", "f ( a ) f ( a , g ( b ) )"),
        ("#define A A + 1", "A", "A + 1"),
        ("#define A B\n#define B A", "A B", "A B"),
        ("#define F(x) x", "F(F)(1)", "F ( 1 )"),
        ("#define min(a, b) (a < b)", "min(min(1, 2), 3)", "( ( 1 < 2 ) < 3 )"),
        ("#define E", "a E b", "a b"),
        ("#define F() x", "F()", "x"),
        ("#define CAT(a, b) a ## b\n#define X(a, b) CAT(a, b)", "X(u, __COUNTER__) X(u, __COUNTER__)", "u0 u1"),
    ],
)
def test_macros_expand_as_in_c(macros: str, text: str, result: str) -> None:
    assert expanded(macros, text) == result


def test_tokens_of_a_macro_stand_where_it_is_used() -> None:
    macro = make_macro("F", "(x) x + \\\n y", "a.h", 70)
    tokens = expand.expand(lex("\n\nF(1\n)", "a.c"), {"F": macro}.get)
    assert {(token.path, token.line) for token in tokens} == {("a.c", 3)}


def test_an_expansion_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "MAX_TOKENS", 1000)
    macros = "\n".join(f"#define A{n} A{n + 1} A{n + 1}" for n in range(40))
    with pytest.raises(InputError, match=r"a\.c:1: macro A\d+ expands to more than 1000 tokens"):
        expanded(macros, "A0")


# Conditionals. --------------------------------------------------------------------------------------------------

BRANCHES = "#if {}\na\n#elif {}\nb\n#else\nc\n#endif\n"


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("1", "1", "a"), ("0", "1", "b"), ("0", "0", "c"), ("UNKNOWN", "!UNKNOWN", "b"),
        ("defined(CONFIG_A)", "0", "a"),
        ("defined CONFIG_B", "defined(CONFIG_M_MODULE)", "b"), ("CONFIG_N > 5 && CONFIG_N < 8", "0", "a"),
        ("IS_ENABLED(CONFIG_M)", "0", "a"), ("IS_BUILTIN(CONFIG_M)", "IS_ENABLED(CONFIG_B)", "c"),
        ("defined(__x86_64__) && !defined(__CHECKER__)", "0", "a"), ("1 ? 0 : 1", "(3 - 1) * 2 == 4", "b"),
        ("syntax error (", "1", "b"), ("1 / 0", "1", "b"), ("__GNUC__ >= 5", "0", "a"),
    ],
)  # fmt: skip
def test_the_first_true_branch_is_active(tmp_path: Path, first: str, second: str, left: str) -> None:
    config = {"CONFIG_A": "y", "CONFIG_N": "7", "CONFIG_M": "m", "CONFIG_OFF": "n"}
    assert active(tmp_path, BRANCHES.format(first, second), config) == left


def test_conditionals_nest(tmp_path: Path) -> None:
    text = "#ifdef CONFIG_A\n#ifndef CONFIG_B\na\n#else\nb\n#endif\nc\n#else\n#if 1\nd\n#endif\n#endif\ne\n"
    assert active(tmp_path, text, {"CONFIG_A": "y"}) == "a c e"
    assert active(tmp_path, text) == "d e"


def test_an_include_guard_lets_its_file_through(tmp_path: Path) -> None:
    guarded = "#ifndef __KVM_HOST_H\n#define __KVM_HOST_H\n#define LIMIT 3\n#endif\n"
    assert active(tmp_path, "#if LIMIT == 3\na\n#endif\n", kvm=guarded) == "a"


def test_a_default_yields_to_a_nearer_definition(tmp_path: Path) -> None:
    default = "#ifndef WIDTH\n#define WIDTH 1\n#endif\n"
    text = "#if WIDTH == 2\nnear\n#else\ndefault\n#endif\n"
    assert active(tmp_path / "both", text, generic=default, x86="#define WIDTH 2\n") == "near"
    assert active(tmp_path / "one", text, generic=default) == "default"


def test_macros_of_other_c_files_are_not_seen(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "#ifdef LOCAL\na\n#endif\n", "arch/x86/kvm/x86.c": "#define LOCAL\n"})
    source = index.sources[[source.path for source in index.sources].index(SVM)]
    assert not index.preprocessor.is_active(source, source.text.index("a\n"))


def test_directives_in_comments_do_not_count(tmp_path: Path) -> None:
    assert active(tmp_path, "/*\n#if 0\n*/\na /* x */\n/* \\\n#endif */ b // c\n") == "a b"


def test_a_continued_condition_is_one_line(tmp_path: Path) -> None:
    assert active(tmp_path, "#if 1 && \\\n 0\na\n#endif\nb\n") == "b"


def test_unbalanced_directives_do_no_harm(tmp_path: Path) -> None:
    assert active(tmp_path, "#endif\n#else\na\n#if 1\nb\n") == "a b"


def test_conditionals_nested_without_end_are_an_error_and_no_crash(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "#if 1\n" * 5000 + "int f(void) { return 1; }\n"})
    with pytest.raises(InputError, match=r"svm\.c: conditionals are nested too deeply"):
        index.function("f")


def test_definitions_that_exclude_each_other_end_somewhere(tmp_path: Path) -> None:
    text = "#ifdef A\na\n#endif\n#ifdef B\nb\n#endif\n"
    assert active(tmp_path, text, kvm="#ifdef B\n#define A\n#endif\n#ifdef A\n#define B\n#endif\n") == ""


# Which definition counts. ---------------------------------------------------------------------------------------


def value(tmp_path: Path, text: str, files: dict[str, str], at: str = "X;") -> str:
    index = mini_index(tmp_path, {SVM: text} | files)
    source = next(source for source in index.sources if source.path == SVM)
    start = source.text.index(at)
    return " ".join(token.text for token in index.preprocessor.tokens(source, start, start + len(at)))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("#define X 1\nX;\n#define X 2\n", "1 ;"),
        ("#define X 1\n#undef X\nX;\n", "X ;"),
        ("X;\n#define X 1\n", "9 ;"),
        ("#if 0\n#define X 1\n#endif\nX;\n", "9 ;"),
    ],
)
def test_the_own_file_counts_up_to_the_use(tmp_path: Path, text: str, result: str) -> None:
    assert value(tmp_path, text, {KVM_H: "#define X 9\n"}) == result


def test_the_nearest_header_counts(tmp_path: Path) -> None:
    files = {GENERIC_H: "#define X 1\n", KVM_H: "#define X 2\n", X86_H: "#define X 3\n", SVM_H: "#define X 4\n"}
    assert value(tmp_path, "X;\n", files) == "4 ;"
    del files[SVM_H]
    assert value(tmp_path / "far", "X;\n", files) == "3 ;"


def test_a_macro_that_its_header_undefines_again_is_not_seen(tmp_path: Path) -> None:
    files = {X86_H: "#define X 1\n#undef X\n", GENERIC_H: "#define X 2\n"}
    assert value(tmp_path, "X;\n", files) == "2 ;"


def test_config_symbols_are_macros(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "x"}, {"CONFIG_A": "y", "CONFIG_B": "64", "CONFIG_C": "n"})
    use = Use(Source("a.c", "", 0), 0, 0)
    tokens = lex("CONFIG_A CONFIG_B CONFIG_C IS_ENABLED(CONFIG_C)", "a.c")
    assert [token.text for token in index.preprocessor.expanded(tokens, use)] == ["1", "64", "CONFIG_C", "0"]


def test_opaque_macros_stay_calls(tmp_path: Path) -> None:
    files = {SVM: "X(1);\n", KVM_H: "#define X(a) a\n"}
    index = mini_index(tmp_path, files, opaque=frozenset(("X",)))
    tokens = index.preprocessor.tokens(index.sources[-1], 0, 0)
    assert tokens == []
    source = next(source for source in index.sources if source.path == SVM)
    assert [t.text for t in index.preprocessor.tokens(source, 1, 6)] == ["X", "(", "1", ")", ";"]
