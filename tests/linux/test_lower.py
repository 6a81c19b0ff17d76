"""C semantics, one rule a test, by running small functions. Random programs are compared with gcc elsewhere."""

from __future__ import annotations

import pytest

from iretrace.linux.program import Model, Neutral, Run, Storage, Unmodelled, Value
from tests.linux.csource import PATH, DictRules, call, program_of


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("-1 < 1u", 0),
        ("(unsigned char)200 + 100", 300),
        ("(signed char)200", -56),
        ("2147483647 + 1", -2147483648),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("-1 >> 1", -1),
        ("-1u >> 31", 1),
        ("1 << 33 - 1", 1),
        ("(_Bool)256", 1),
        ("sizeof(char[3]) + _Alignof(long)", 11),
        ("sizeof('a')", 4),
        ("sizeof(1 ? (char)1 : (short)2)", 4),
        ("0x80000000 > 0", 1),
        ("~0u == 0xffffffff", 1),
        ("!5 + !0", 1),
        ("(3, 4)", 4),
        ("(long)(int)0x80000000", -2147483648),
        ("(0 ? -1 : 1u) > 0", 1),
        ("-1 ?: 5", -1),
        ("__builtin_popcount(0xff00ff) + __builtin_clz(1) + __builtin_ctzl(8) + __builtin_ffs(0)", 50),
        ("__builtin_bswap32(0x01020304) == 0x04030201", 1),
        ("__builtin_types_compatible_p(typeof(1u), unsigned)", 1),
        ("__builtin_types_compatible_p(long, long long)", 0),
        ("__builtin_choose_expr(sizeof(long) == 8, 3, nowhere())", 3),
        ("_Generic(1ul, int: 1, unsigned long: 2, default: 3)", 2),
        ("({ int x = 4; x *= 2; x + 1; })", 9),
        ("(unsigned long)(((unsigned __int128)0x8000000000000000 * 6) >> 64)", 3),
        ("sizeof(*(8 ? (void *)((long)(n) * 0l) : (int *)8))", 1),
        ("sizeof(*(8 ? (void *)((long)(3) * 0l) : (int *)8))", 4),
    ],
)  # fmt: skip
def test_the_value_of_an_expression(expression: str, value: int) -> None:
    assert call(f"long f(int n) {{ return {expression}; }}", "f", 2) == value


def test_conditional_takes_the_common_type_of_both_alternatives() -> None:
    """The type of `?:` does not depend on which side is taken."""
    text = "int f(int c) { return (c ? -1 : 0u) > 0; } int g(void) { return (1 ? -1 : 0u) > 0; }"
    assert (call(text, "f", 1), call(text, "g")) == (1, 1)


def test_null_pointer_constants_take_the_type_of_the_other_side() -> None:
    assert call("int f(int *p) { return sizeof(*(p ? p : (void *)0)); }", "f", 0) == 4


def test_unions_pun_bytes() -> None:
    text = """
    int f(void) { union { unsigned int w; unsigned char b[4]; } u = { .w = 0x01020304 };
    return u.b[0] * 10 + u.b[3]; }
    """
    assert call(text, "f") == 41


def test_bit_fields_wrap_sign_extend_and_leave_their_neighbours_alone() -> None:
    text = """
    struct s { unsigned a:3; int b:5; unsigned c:24; };
    int f(void) { struct s x = { 7, -1, 0xabcdef }; x.a++; x.b -= 16; return x.a == 0 && x.b == 15 && x.c == 0xabcdef; }
    """
    assert call(text, "f") == 1


def test_the_value_of_an_assignment_to_a_bit_field_is_what_it_holds() -> None:
    assert call("int f(void) { struct { unsigned a:3; } x; return x.a = 13; }", "f") == 5


def test_switch_falls_through_and_knows_ranges() -> None:
    text = """
    int f(int x) {
      int r = 0;
      switch (x) { case 1: r += 1; case 2: r += 2; break; case 10 ... 19: return 100; default: r = -1; }
      return r;
    }
    """
    assert [call(text, "f", x) for x in (1, 2, 15, 20)] == [3, 2, 100, -1]


def test_switch_labels_have_the_type_of_the_value() -> None:
    assert call("int f(unsigned x) { switch (x) { case -1: return 1; } return 0; }", "f", 0xFFFFFFFF) == 1


def test_goto_leads_into_and_out_of_blocks() -> None:
    text = """
    int f(int x) {
      int n = 0;
      if (x) goto inside;
    again:
      n += 10;
      if (n < 30) { goto again; inside: n += 1; }
      return n;
    }
    """
    assert (call(text, "f", 0), call(text, "f", 1)) == (30, 1)


def test_continue_in_do_while_tests_the_condition() -> None:
    text = "int f(void) { int i = 0, n = 0; do { i++; if (i == 2) continue; n += i; } while (i < 4); return n; }"
    assert call(text, "f") == 8


def test_structs_are_passed_and_returned_by_value() -> None:
    text = """
    struct s { int a[3]; };
    static struct s g(struct s x) { x.a[1] = 9; return x; }
    int f(void) { struct s x = { { 1, 2, 3 } }; return g(x).a[1] * 100 + g(x).a[2] * 10 + x.a[1]; }
    """
    assert call(text, "f") == 932


def test_pointers_step_by_the_size_of_what_they_point_to() -> None:
    text = "int f(void) { short a[4] = { 1, 2, 3, 4 }, *p = a; p += 2; return *p++ * 100 + *p * 10 + (p - a); }"
    assert call(text, "f") == 343


def test_container_of_finds_the_outer_struct() -> None:
    text = """
    struct in { int x; }; struct out { long a; struct in i; };
    int g(struct in *p) { return ((struct out *)((char *)p - __builtin_offsetof(struct out, i)))->a; }
    int f(void) { struct out o = { .a = 42 }; return g(&o.i); }
    """
    assert call(text, "f") == 42


def test_initializers_elide_braces_and_take_designators() -> None:
    text = """
    struct p { int x, y; };
    int f(void) {
      struct p a[3] = { 1, 2, { 3 }, [2].y = 6, [0].x = 7 };
      return a[0].x + a[0].y * 10 + a[1].x * 100 + a[2].y * 1000;
    }
    """
    assert call(text, "f") == 6327


def test_array_ranges_and_unsized_arrays() -> None:
    text = "int f(void) { int a[] = { [1 ... 3] = 5, [5] = 1 }; return sizeof(a) / 4 * 100 + a[2] * 10 + a[4]; }"
    assert call(text, "f") == 650


def test_a_variable_is_fresh_on_every_entry_of_its_block() -> None:
    text = """
    int f(void) { int s = 0; for (int i = 0; i < 3; i++) { int a[2] = { i }; s += a[0] + a[1]; a[1] = 9; } return s; }
    """
    assert call(text, "f") == 3


def test_overflow_builtins_store_the_wrapped_result() -> None:
    text = "int f(void) { unsigned char r; return __builtin_add_overflow(250, 10, &r) * 100 + r; }"
    assert call(text, "f") == 104


def test_arguments_are_evaluated_from_last_to_first_as_in_gcc() -> None:
    text = """
    static int g(int *at, int x) { *at = *at * 10 + x; return x; }
    static int h(int a, int b, int c) { return 0; }
    int f(void) { int n = 0; h(g(&n, 1), g(&n, 2), g(&n, 3)); return n; }
    """
    assert call(text, "f") == 321


def test_the_right_side_of_a_compound_assignment_is_evaluated_before_the_left_is_read() -> None:
    text = """
    struct s { int a, b; };
    static int g(struct s *p) { p->a = 5; return 1; }
    int f(void) { struct s x = { 1 }; x.a += g(&x); return x.a; }
    """
    assert call(text, "f") == 6


def test_a_value_read_before_a_call_is_not_read_again_after_it() -> None:
    text = "static int g(int *p) { *p = 5; return 1; } int f(void) { int x[1] = { 2 }; return x[0] * 10 + g(x); }"
    assert call(text, "f") == 21


def test_calls_through_pointers_in_constant_tables() -> None:
    text = """
    static int one(int x) { return x + 1; } static int two(int x) { return x + 2; }
    static int (*const table[])(int) = { [3] = one, [5] = two };
    int f(int n) { return table[n] ? table[n](10) : -1; }
    """
    assert [call(text, "f", n) for n in (3, 4, 5)] == [11, -1, 12]


def test_statics_keep_their_value_within_a_run() -> None:
    program = program_of("int f(void) { static int n; return ++n; }")
    run = Run(program)
    assert [run.call("f") for _ in range(3)] == [1, 2, 3]
    assert Run(program).call("f") == 1


def test_an_initial_value_that_changes_must_be_materialised() -> None:
    text = "int n = 3; int f(void) { return ++n; }"
    rules = DictRules(globals={"n": Storage("source")})
    with pytest.raises(Unmodelled, match="initial value"):
        call(text, "f", rules=rules)
    program = program_of(text, rules)
    program.materialise("n")
    assert Run(program).call("f") == 4


# What nobody answers. ------------------------------------------------------------------------------------------


def refused(text: str, name: str, *args: int, rules: DictRules | None = None) -> Unmodelled:
    """The error of a call."""
    with pytest.raises(Unmodelled) as caught:
        call(text, name, *args, rules=rules)
    return caught.value


def test_an_unknown_function_matters_only_where_it_is_called() -> None:
    text = "int f(int x) {\n if (x)\n  nowhere(x);\n return 1; }"
    assert call(text, "f", 0) == 1
    error = refused(text, "f", 1)
    assert "nowhere() has no definition" in error.what
    assert str(error.where) == "test.c:3"
    assert 'name = "nowhere"' in error.row


def test_an_unknown_function_in_one_alternative_does_not_spoil_the_other() -> None:
    text = "int f(int x) { return x ? nowhere(x) : 7; } int g(int x) { return x && nowhere(x); }"
    assert (call(text, "f", 0), call(text, "g", 0)) == (7, 0)
    assert "nowhere" in refused(text, "f", 1).what


def test_an_unknown_function_in_a_condition_matters_only_where_it_is_called() -> None:
    text = "int f(int x) { if (!x) return 3; while ((x = nowhere()), x) x--; return 4; }"
    assert call(text, "f", 0) == 3
    assert "nowhere" in refused(text, "f", 1).what


def test_an_unknown_name_says_what_would_answer_it() -> None:
    error = refused("int f(void) { return missing; }", "f")
    assert "`missing` is not defined" in error.what
    assert "[[global]]" in error.row


def test_a_variable_that_is_not_constant_needs_a_rule() -> None:
    error = refused("int option = 1; int f(void) { return option; }", "f")
    assert "the value of the global variable `option` is not known" in error.what
    assert call("int option; int f(void) { return option; }", "f", rules=DictRules(globals={"option": 4})) == 4


def test_inline_assembly_is_refused_when_it_is_reached() -> None:
    text = 'int f(int x) {\n if (x)\n  asm volatile("hlt");\n return 2; }'
    assert call(text, "f", 0) == 2
    error = refused(text, "f", 1)
    assert "inline assembly in f()" in error.what
    assert str(error.where) == "test.c:3"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("struct s { int x; }; int f(struct s *p) { return p->x; }", "NULL dereference"),
        ("int f(int n) { return 1 / n; }", "division by zero"),
        ("int f(int n) { int x; if (n) x = 1; return x; }", "read before it is written"),
        ("int f(int n) { int a[n]; return a[0]; }", "not a constant expression"),
        ("int f(int n) { double d = 1; return d; }", "double"),
        ("int f(int (*g)(void)) { return g(); }", "call through a pointer that is no function: NULL"),
        ("int f(int n) { return f(n + 1); }", "recurses without end"),
        ("struct t; int f(struct t *p) { return p->x; }", "struct t has no definition"),
        ("int f(int n) { for (;;) ; }", "a loop does not end"),
        ("int f(int n) { char a[1 << 20]; a[0] = 1; return a[0]; }", "a stack frame of"),
        ("struct t { struct t x; }; int f(int n) { struct t a; return sizeof(a); }", "struct t contains itself"),
        ("int f(int n) { return sizeof(char[n - 1]); }", "not a constant expression"),
        ("int f(int n) { return sizeof(char[-1]); }", "an array of -1 elements"),
        ("int f(int n) { int a[4] = { [0 ... 1 << 30] = 1 }; return a[0]; }", "designator"),
        ("int f(int n) { long x; return memset(&x, 0, -1ul) != 0; }", "bytes at once"),
        (f"int f(int n) {{ return n{' + n' * 2000}; }}", "nesting"),
    ],
)  # fmt: skip
def test_what_c_leaves_undefined_or_we_do_not_model_is_refused_with_its_line(text: str, what: str) -> None:
    error = refused(text, "f", 0)
    assert what in error.what
    assert str(error.where) == "test.c:1"


# Rules. ----------------------------------------------------------------------------------------------------------


def test_a_neutral_function_evaluates_its_arguments_and_has_no_value() -> None:
    text = "void n(int); int m(int); int f(void) { int x = 1; n(x++); return x; } int g(void) { return m(1); }"
    rules = DictRules({"n": Neutral(), "m": Neutral()})
    assert call(text, "f", rules=rules) == 2
    assert "only says that it is neutral" in refused(text, "g", rules=rules).what


def test_a_value_is_converted_to_what_the_prototype_returns() -> None:
    text = "unsigned char v(void); int f(void) { return v(); }"
    assert call(text, "f", rules=DictRules({"v": Value(300)})) == 44


def test_a_model_gets_converted_arguments_and_its_result_is_converted() -> None:
    rules = DictRules({"m": Model(lambda run, a, b: a * 1000 + b)})
    text = "unsigned short m(unsigned char, int); int f(void) { return m(257, -1); }"
    assert call(text, "f", rules=rules) == 999


def test_a_macro_that_takes_an_lvalue_gets_its_address() -> None:
    def swap(run: Run, at: int, value: int) -> int:
        old = run.m.get(at, 0)
        run.m[at] = value
        return old

    rules = DictRules({"XCHG": Model(swap, returns="*0", by_address=(0,))})
    assert call("long f(void) { long x = 5; long y = XCHG(x, 7); return x * 10 + y; }", "f", rules=rules) == 75


def test_a_site_says_where_and_with_what_a_model_was_called() -> None:
    seen = []
    rules = DictRules({"WARN": Model(lambda run, site, value: seen.append(site), site=True)})
    call("int f(unsigned short *p) {\n WARN(p);\n return 0; }", "f", 0, rules=rules)
    assert str(seen[0].pos) == "test.c:2"
    assert (seen[0].function, seen[0].texts, seen[0].bits, seen[0].pointee) == ("f", ("p",), (64,), (16,))


def test_static_calls_go_to_the_function_in_the_table() -> None:
    text = """
    struct ops { int (*get)(int); }; static int svm_get(int x) { return x + 1; }
    static struct ops svm_ops = { .get = svm_get };
    int f(void) { return static_call(kvm_get)(4); }
    """
    assert call(text, "f", rules=DictRules(static_calls={"kvm_": "svm_ops"})) == 5


def test_a_static_key_is_what_its_rule_says() -> None:
    text = "int f(void) { if (static_branch_unlikely(&key)) return 1; return 2; }"
    assert call(text, "f", rules=DictRules(keys={"key": True})) == 1
    assert "static key key" in refused(text, "f").what


def test_shared_members_are_announced_before_each_access() -> None:
    seen = []

    class Watching(Run):
        def shared(self, address: int, mask: int, write: bool) -> None:
            seen.append((address, mask, write))

    text = "struct v { int a; unsigned short r; }; int f(struct v *p) { p->a = 1; p->r |= 4; return p->r; }"
    program = program_of(text, DictRules(shared=frozenset({"v.r"})))
    at = program.space.allocate("v", 8).address
    assert Watching(program).call("f", at) == 4
    assert seen == [(at, 0xFFFF << 32, False), (at, 0xFFFF << 32, True), (at, 0xFFFF << 32, False)]


def test_a_shared_member_read_by_read_once_is_announced() -> None:
    class Counting(Run):
        count = 0

        def shared(self, address: int, mask: int, write: bool) -> None:
            self.count += 1

    text = "struct v { int r; }; int f(struct v *p) { return READ_ONCE(p->r) + *(volatile int *)&p->r; }"
    program = program_of(text, DictRules(shared=frozenset({"v.r"})))
    run = Counting(program)
    run.call("f", program.space.allocate("v", 8).address, path=PATH)
    assert run.count == 2
