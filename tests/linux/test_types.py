"""Types and layouts against gcc's rules for x86-64."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from iretrace.linux.layout import Layout
from iretrace.linux.types import (
    BOOL,
    CHAR,
    INT,
    LLONG,
    LONG,
    SHORT,
    UCHAR,
    UINT,
    ULLONG,
    ULONG,
    Int,
    basic,
    bit_field_type,
    common,
    promote,
    same_type,
)
from iretrace.linux.unmodelled import Unmodelled
from tests.linux.csource import TextSource
from tests.linux.gcc import compiling, output

SEED = 20240607


def layout_of(text: str, opaque: dict[str, int] | None = None) -> Layout:
    """The types of a C text."""
    return Layout(TextSource(text), opaque)


def offsets(text: str, *members: str) -> list[int]:
    """Offsets in bytes of members of struct s."""
    layout = layout_of(text)
    return [layout.offset(layout.struct_named("struct", "s"), member) for member in members]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("unsigned", UINT), ("long unsigned int", ULONG), ("short int", SHORT), ("signed char", None), ("char", CHAR),
        ("long long", LLONG), ("unsigned long long int", ULLONG), ("_Bool", BOOL), ("signed long", LONG), ("int", INT),
    ],
)  # fmt: skip
def test_specifier_words_come_in_any_order(words: str, kind: Int | None) -> None:
    found = basic(words)
    assert found is kind or (kind is None and found is not CHAR)


def test_floating_point_is_refused_by_name() -> None:
    with pytest.raises(Unmodelled, match="double"):
        basic("double")


def test_small_types_promote_to_int() -> None:
    assert [promote(kind) for kind in (BOOL, CHAR, UCHAR, SHORT, UINT, LONG)] == [INT, INT, INT, INT, UINT, LONG]


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [
        (INT, UINT, UINT), (UINT, LONG, LONG), (LONG, ULONG, ULONG), (LONG, LLONG, LLONG), (ULONG, LLONG, ULLONG),
        (CHAR, UCHAR, INT), (ULLONG, ULONG, ULLONG),
    ],
)  # fmt: skip
def test_usual_arithmetic_conversions(left: Int, right: Int, result: Int) -> None:
    assert common(left, right) is result
    assert common(right, left) is result


def test_a_wide_bit_field_has_a_type_of_its_width() -> None:
    """GCC computes in 40 bits with `unsigned long x:40`."""
    kind = bit_field_type(ULONG, 40)
    assert (kind.bits, kind.signed) == (40, False)
    assert common(kind, INT) is kind
    assert bit_field_type(ULONG, 12) is INT


def test_long_and_long_long_are_different_types_of_one_size() -> None:
    assert not same_type(LONG, LLONG)
    assert LONG.bits == LLONG.bits


def test_members_are_aligned_and_the_end_is_padded() -> None:
    text = "struct s { char a; int b; char c; long d; char e; };"
    assert offsets(text, "a", "b", "c", "d", "e") == [0, 4, 8, 16, 24]
    layout = layout_of(text)
    assert layout.size_of(layout.named("struct s")) == 32


def test_packed_members_follow_each_other() -> None:
    text = "struct s { char a; int b; short c; } __attribute__((packed));"
    layout = layout_of(text)
    struct = layout.struct_named("struct", "s")
    assert offsets(text, "a", "b", "c") == [0, 1, 5]
    assert (struct.body.size, struct.body.align) == (7, 1)


def test_aligned_types_and_members() -> None:
    text = "struct s { char a; int b __attribute__((aligned(16))); } __attribute__((aligned(64)));"
    struct = layout_of(text).struct_named("struct", "s")
    assert (offsets(text, "b"), struct.body.size) == ([16], 64)


def test_anonymous_members_are_members_of_the_outer_struct() -> None:
    text = "struct s { int a; union { long b; struct { int c, d; }; }; int e; };"
    assert offsets(text, "b", "c", "d", "e") == [8, 8, 12, 16]


def test_member_paths_go_through_arrays() -> None:
    assert offsets("struct s { struct { int x, y; } a[3]; };", "a[2].y") == [20]


def test_a_flexible_array_adds_nothing() -> None:
    layout = layout_of("struct s { int n; long data[]; };")
    struct = layout.struct_named("struct", "s")
    assert (layout.offset(struct, "data"), struct.body.size) == (8, 8)


def test_bit_fields_do_not_cross_their_unit_unless_packed() -> None:
    plain = layout_of("struct s { unsigned a:20; unsigned b:20; };")
    packed = layout_of("struct s { unsigned a:20; unsigned b:20; } __attribute__((packed));")
    assert plain.place(plain.struct_named("struct", "s"), "b") == (32, UINT, 20)
    assert packed.place(packed.struct_named("struct", "s"), "b") == (20, UINT, 20)


def test_a_zero_width_bit_field_starts_a_new_unit() -> None:
    layout = layout_of("struct s { char a:3; int :0; char b:3; };")
    assert layout.place(layout.struct_named("struct", "s"), "b")[0] == 32


def test_enums_are_unsigned_unless_a_constant_is_negative_and_grow_when_they_must() -> None:
    layout = layout_of("enum a { A }; enum b { B = -1 }; enum c { C = 1ul << 40 }; enum d { D = -1, E = 1ul << 40 };")
    assert [layout.named(f"enum {tag}") for tag in "abcd"] == [UINT, INT, ULONG, LONG]


def test_enum_constants_count_on_from_the_last() -> None:
    layout = layout_of("enum a { A = 3, B, C = A << 4, D };")
    assert [layout.enumerator(name) for name in ("B", "C", "D")] == [4, 48, 49]


def test_array_sizes_are_constant_expressions() -> None:
    layout = layout_of("struct x { long l; char c; }; enum { N = 2 }; struct s { int a[sizeof(struct x) / N + 1]; };")
    assert layout.struct_named("struct", "s").body.size == 36


def test_a_struct_may_point_to_what_nobody_defines() -> None:
    assert offsets("struct s { struct nowhere *p; void (*f)(struct other); int n; };", "n") == [16]


def test_a_member_without_definition_is_named() -> None:
    layout = layout_of("struct s { struct nowhere n; };")
    with pytest.raises(Unmodelled, match="struct nowhere has no definition") as caught:
        _ = layout.struct_named("struct", "s").body
    assert 'name = "struct nowhere"' in caught.value.row
    assert str(caught.value.where) == "test.c:1"


def test_an_opaque_struct_has_a_size_and_no_members() -> None:
    layout = layout_of("struct s { struct nowhere n; int after; };", {"struct nowhere": 24})
    struct = layout.struct_named("struct", "s")
    assert layout.offset(struct, "after") == 24
    with pytest.raises(Unmodelled, match="content is not known"):
        layout.offset(struct, "n.x")


def random_structs(seed: int, count: int) -> tuple[str, list[list[str]]]:
    """Structs s0, s1, ... with random members, and the names of those that have an address."""
    r = random.Random(seed)
    kinds = ["char", "short", "int", "long", "unsigned long long", "_Bool", "void *", "unsigned short", "enum e"]
    lines, names = ["enum e { E };"], []
    for number in range(count):
        members, named = [], []
        for at in range(r.randint(1, 9)):
            kind, name = r.choice(kinds), f"m{at}"
            shape = r.random()
            if shape < 0.4 and kind != "void *":
                most = {"char": 8, "_Bool": 1, "short": 16, "unsigned short": 16, "long": 64, "unsigned long long": 64}
                width = r.randint(0 if r.random() < 0.2 and kind != "enum e" else 1, most.get(kind, 32))
                if not width or (kind != "enum e" and r.random() < 0.1):
                    name = ""
                members.append(f"{kind} {name}:{width};")
                continue
            if shape < 0.5:
                members.append(f"{kind} {name}[{r.randint(1, 5)}];")
            elif shape < 0.55:
                members.append(f"{kind} {name} __attribute__((aligned({r.choice((2, 4, 16))})));")
            elif shape < 0.6:
                members.append(f"{kind} {name} __attribute__((packed));")
            elif shape < 0.7 and number:
                members.append(f"struct s{r.randrange(number)} {name};")
            elif shape < 0.78:
                members.append(f"union {{ {kind} {name}; {r.choice(kinds)} n{at}; }};")
                named.append(f"n{at}")
            else:
                members.append(f"{kind} {name};")
            named.append(name)
        packed = r.choice(("", "", "", " __attribute__((packed))", " __attribute__((aligned(8)))"))
        lines.append(f"struct s{number} {{ {' '.join(members)} }}{packed};")
        names.append(named)
    return "\n".join(lines), names


def test_random_layouts_are_those_of_gcc(tmp_path: Path) -> None:
    text, names = random_structs(SEED, 300)
    queries = []
    for number, members in enumerate(names):
        queries += [f"sizeof(struct s{number})", f"_Alignof(struct s{number})"]
        queries += [f"__builtin_offsetof(struct s{number}, {member})" for member in members]
    main = "int main(void) {" + "".join(f'__builtin_printf("%lu\\n", {query});' for query in queries) + "}"
    expected = output(compiling(tmp_path, f"{text}\n{main}", "-O0"))
    layout = layout_of(text)
    found = []
    for number, members in enumerate(names):
        struct = layout.struct_named("struct", f"s{number}")
        found += [struct.body.size, struct.body.align]
        found += [layout.offset(struct, member) for member in members]
    wrong = [(q, e, f) for q, e, f in zip(queries, expected, found, strict=True) if int(e) != f]
    assert not wrong, f"seed {SEED}"
