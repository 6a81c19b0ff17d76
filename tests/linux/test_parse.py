"""The parser on small C texts."""

from __future__ import annotations

from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.linux import ctree
from iretrace.linux.ctree import Basic, Expr, PointerType, Pos
from iretrace.linux.lex import lex
from iretrace.linux.parse import (
    ParseError,
    Typedef,
    canonical_basic,
    parse_expression,
    parse_function,
    parse_translation_unit,
)

T = TypeVar("T")


def expr(text: str, *typedefs: str) -> Expr:
    return parse_expression(lex(text, "a.c"), lambda name: name in typedefs)


def show(node: Expr) -> str:
    """An expression with all parentheses."""
    match node:
        case ctree.Num(value=value):
            return str(value)
        case ctree.Name(name=name):
            return name
        case ctree.Unary(op=op, of=of):
            return f"({op}{show(of)})"
        case ctree.Binary(op=op, left=left, right=right) | ctree.Assign(op=op, left=left, right=right):
            return f"({show(left)} {op} {show(right)})"
        case ctree.Conditional(cond=cond, then=then, other=other):
            return f"({show(cond)} ? {show(then) if then else ''} : {show(other)})"
        case ctree.Call(function=function, args=args):
            return f"{show(function)}({', '.join(show(arg) for arg in args)})"
        case ctree.Member(of=of, name=name, arrow=arrow):
            return f"{show(of)}{'->' if arrow else '.'}{name}"
        case ctree.Index(of=of, index=index):
            return f"{show(of)}[{show(index)}]"
        case ctree.Postfix(op=op, of=of):
            return f"({show(of)}{op})"
    raise AssertionError(node)


def only(text: str, kind: type[T]) -> T:
    """The one node of a text."""
    (node,) = parse_translation_unit(text)
    assert isinstance(node, kind)
    return node


def body(text: str) -> tuple[ctree.Statement, ...]:
    """The statements of a function with this body."""
    return only(f"void f(void) {{ {text} }}", ctree.Function).body.items


def statement(text: str, kind: type[T]) -> T:
    (node,) = body(text)
    assert isinstance(node, kind)
    return node


# Expressions. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a + b * c - d", "((a + (b * c)) - d)"),
        ("a | b ^ c & d == e", "(a | (b ^ (c & (d == e))))"),
        ("a << 1 + 2 < b", "((a << (1 + 2)) < b)"),
        ("a && b || c && d", "((a && b) || (c && d))"),
        ("a = b += c", "(a = (b += c))"),
        ("a ? b : c ? d : e", "(a ? b : (c ? d : e))"),
        ("a ?: b", "(a ?  : b)"),
        ("!a->b.c[1](2, 3)++", "(!(a->b.c[1](2, 3)++))"),
        ("-~*&a", "(-(~(*(&a))))"),
        ("a, b = c", "(a , (b = c))"),
        ("a - -b", "(a - (-b))"),
        ("(a)(b)", "a(b)"),
    ],
)
def test_operators_bind_as_in_c(text: str, shown: str) -> None:
    assert show(expr(text)) == shown


@pytest.mark.parametrize(
    ("text", "value", "suffix", "is_hex"),
    [
        ("10", 10, "", False), ("0", 0, "", False), ("017", 15, "", True), ("0x1FuLL", 31, "ull", True),
        ("1LU", 1, "ul", False), ("0b101", 5, "", True), ("'a'", 97, "", False), (r"'\n'", 10, "", False),
        (r"'\0'", 0, "", False), (r"'\xff'", -1, "", False),
    ],
)  # fmt: skip
def test_constants_have_c_values(text: str, value: int, suffix: str, is_hex: bool) -> None:
    assert expr(text) == ctree.Num(Pos("a.c", 1), value, suffix, is_hex)


def test_adjacent_strings_are_one() -> None:
    assert expr(r'"a\n" "b\x41"') == ctree.Str(Pos("a.c", 1), "a\nbA")


def test_a_typedef_name_in_parentheses_is_a_cast() -> None:
    assert isinstance(expr("(u64)-a", "u64"), ctree.Cast)
    assert isinstance(expr("(u64)-a"), ctree.Binary)


def test_an_annotation_before_a_type_does_not_hide_the_cast() -> None:
    assert isinstance(expr("(__force u64)a", "u64"), ctree.Cast)


def test_sizeof_takes_types_and_expressions() -> None:
    of_type, of_expr = expr("sizeof(unsigned long)"), expr("sizeof(a)[0]")
    assert isinstance(of_type, ctree.SizeOf)
    assert of_type.of == Basic("unsigned long")
    assert isinstance(of_expr, ctree.SizeOf)
    assert isinstance(of_expr.of, ctree.Index)


def test_offsetof_keeps_its_path() -> None:
    node = expr("__builtin_offsetof(struct a, b.c[2].d)")
    assert isinstance(node, ctree.OffsetOf)
    assert node.path == ("b", "c", ctree.Num(Pos("a.c", 1), 2), "d")


def test_designated_initializers_keep_their_designators() -> None:
    node = expr("(struct a){ .b = 1, .c.d = 2, [3] = 4, [5 ... 6] = 7, e: 8, 9 }")
    assert isinstance(node, ctree.CompoundLiteral)
    pos = Pos("a.c", 1)
    three, five, six = (ctree.Num(pos, value) for value in (3, 5, 6))
    assert [designators for designators, _ in node.init.items] == [
        ("b",), ("c", "d"), (three,), ((five, six),), ("e",), ()
    ]  # fmt: skip


def test_generic_keeps_types_and_default() -> None:
    node = expr("_Generic(a, int: 1, default: 2)")
    assert isinstance(node, ctree.Generic)
    assert [type_ for type_, _ in node.choices] == [Basic("int"), None]


def test_types_compatible_takes_two_types() -> None:
    assert isinstance(expr("__builtin_types_compatible_p(typeof(a), int *)"), ctree.TypesCompatible)


def test_a_statement_expression_holds_its_statements() -> None:
    node = expr("({ int b = a; b + 1; })")
    assert isinstance(node, ctree.StatementExpr)
    assert [type(item) for item in node.body.items] == [ctree.Declaration, ctree.ExprStatement]


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        ("1.5", "the constant 1.5"),
        ("__builtin_va_arg(ap, int)", "va_arg"),
        ("a +", "'the end' where an expression is expected"),
        ("a b", "'b' behind an expression"),
        ("f(a", "'the end' where '\\)' is expected"),
        ("09", "the constant 09"),
    ],
)
def test_what_cannot_be_parsed_is_named(text: str, construct: str) -> None:
    with pytest.raises(ParseError, match=construct):
        expr(text)


_names = st.sampled_from(["a", "b", "c"])
_expressions = st.recursive(
    st.one_of(st.integers(0, 99).map(str), _names),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+ - * / % & | ^ << >> < <= == != && || ,".split()), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} ? {parts[1]} : {parts[2]})"),
        st.tuples(st.sampled_from("! ~ - *".split()), inner).map(lambda parts: f"({parts[0]}{parts[1]})"),
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(_expressions)
def test_an_expression_with_all_parentheses_is_parsed_as_written(text: str) -> None:
    assert show(expr(text)) == text


# Types. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("long unsigned int", "unsigned long"), ("int", "int"), ("unsigned", "unsigned int"),
        ("signed char", "signed char"), ("int long long", "long long"), ("short unsigned", "unsigned short"),
        ("__signed__ int", "int"), ("unsigned __int128", "unsigned __int128"), ("float int", ""),
    ],
)  # fmt: skip
def test_basic_types_have_one_name(words: str, name: str) -> None:
    assert canonical_basic(words.split()) == name


def test_declarators_are_read_inside_out() -> None:
    node = only("int *(*a[3])(char b, ...);", ctree.Declaration)
    function = ctree.FunctionType(PointerType(Basic("int")), (ctree.Param("b", Basic("char")),), True)
    assert node.type == ctree.ArrayType(PointerType(function), ctree.Num(Pos("test.c", 1), 3))


def test_a_declaration_of_several_names_is_several_nodes() -> None:
    nodes = parse_translation_unit("static int a, *b, c[2];")
    assert [getattr(node, "name", "") for node in nodes] == ["a", "b", "c"]


def test_void_parameters_are_none() -> None:
    assert only("int f(void);", ctree.Declaration).type == ctree.FunctionType(Basic("int"), ())


def test_a_struct_keeps_bit_fields_and_anonymous_members() -> None:
    node = only("struct a { unsigned x : 3, y : 5; union { int p; long q; }; int : 4; };", ctree.StructType)
    assert node.fields is not None
    assert [(field.name, field.bits is None) for field in node.fields] == [
        ("x", False), ("y", False), ("", True), ("", False)
    ]  # fmt: skip


def test_packed_and_aligned_are_kept() -> None:
    text = "struct __attribute__((packed)) a { int b __attribute__((aligned(8))); } __aligned(16);"
    node = only(text, ctree.StructType)
    assert node.packed
    assert node.align == ctree.Num(Pos("test.c", 1), 16)
    assert node.fields is not None
    assert node.fields[0].align == ctree.Num(Pos("test.c", 1), 8)


def test_enumerators_keep_their_values() -> None:
    node = only("enum a { B, C = 3, D, };", ctree.EnumType)
    assert [name for name, _ in node.items or ()] == ["B", "C", "D"]


def test_typedefs_are_known_to_what_follows() -> None:
    typedef, variable = parse_translation_unit("typedef unsigned int u32; u32 a;")
    assert isinstance(typedef, Typedef)
    assert typedef.type == Basic("unsigned int")
    assert isinstance(variable, ctree.Declaration)
    assert variable.type == ctree.TypeName("u32", "test.c")


def test_a_pointer_to_const_is_not_const() -> None:
    nodes = parse_translation_unit("const char *a; const int b;")
    assert [isinstance(node, ctree.Declaration) and node.const for node in nodes] == [False, True]


def test_kernel_annotations_vanish() -> None:
    node = only("static __always_inline int __init f(char __user *a) __must_hold(x) { return 0; }", ctree.Function)
    assert node.static
    assert node.type == ctree.FunctionType(Basic("int"), (ctree.Param("a", PointerType(Basic("char"))),))


# Statements. ----------------------------------------------------------------------------------------------------


def test_a_function_knows_its_first_and_last_line() -> None:
    node = only("int f(int a)\n{\n\treturn a;\n}\n", ctree.Function)
    assert (node.pos.line, node.last_line) == (1, 4)


def test_else_belongs_to_the_nearer_if() -> None:
    node = statement("if (a) if (b) c; else d;", ctree.If)
    assert node.other is None
    assert isinstance(node.then, ctree.If)
    assert node.then.other is not None


def test_case_ranges_and_default_are_cases() -> None:
    node = statement("switch (a) { case 1 ... 3: case 5: b; default: c; }", ctree.Switch)
    assert isinstance(node.body, ctree.Block)
    first, second = node.body.items
    assert isinstance(first, ctree.Case)
    assert first.high is not None
    assert isinstance(first.body, ctree.Case)
    assert isinstance(second, ctree.Case)
    assert second.low is None


def test_a_label_may_end_a_block() -> None:
    node = body("goto out; out: ")[1]
    assert isinstance(node, ctree.Label)
    assert isinstance(node.body, ctree.Empty)


def test_local_labels_and_label_addresses_are_read() -> None:
    node = body("unsigned long a = ({ __label__ here; here: (unsigned long)&&here; });")[0]
    assert isinstance(node, ctree.Declaration)
    assert isinstance(node.init, ctree.StatementExpr)


def test_loops_keep_their_parts() -> None:
    loop = statement("for (int i = 0; i < 3; i++) continue;", ctree.For)
    assert isinstance(loop.init[0], ctree.Declaration)
    assert statement("for (;;) break;", ctree.For).cond is None
    assert statement("do a; while (b);", ctree.While).do_first


def test_assembly_is_kept_as_text() -> None:
    node = statement('asm volatile goto("jmp %l[out]" : : "r"(a) : : out);', ctree.Asm)
    assert node.text.startswith('asm volatile goto ( "jmp %l[out]"')


def test_auto_type_is_the_type_of_the_initializer() -> None:
    node = statement("__auto_type a = b + 1;", ctree.Declaration)
    assert node.init is not None
    assert node.type == ctree.TypeofType(node.init)


def test_a_variable_hides_a_typedef_of_its_name() -> None:
    text = "typedef int u; void f(void) { u u = 1; (u) + 1; }"
    function = parse_translation_unit(text)[1]
    assert isinstance(function, ctree.Function)
    last = function.body.items[1]
    assert isinstance(last, ctree.ExprStatement)
    assert isinstance(last.expr, ctree.Binary)


def test_local_types_are_put_in_place() -> None:
    (_, declaration) = body("typedef struct { int a; } t; t b;")
    assert isinstance(declaration, ctree.Declaration)
    assert isinstance(declaration.type, ctree.StructType)


def test_local_prototypes_and_assertions_are_empty() -> None:
    assert [type(item) for item in body('extern void g(void); _Static_assert(1, "x"); ;')] == [ctree.Empty] * 3


def test_parse_function_refuses_anything_else() -> None:
    with pytest.raises(ParseError, match="function definition"):
        parse_function(lex("int a;", "a.c"))
