"""Lookups by name, on mini trees."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from iretrace.linux import ctree
from iretrace.linux.ctree import Basic, PointerType, TypeName
from iretrace.linux.index import OPS
from iretrace.linux.parse import ParseError
from tests.linux.mini import SEV, SVM, SVM_H, mini_index

X86 = "arch/x86/kvm/x86.c"
KVM_H = "include/linux/kvm_host.h"


def test_a_function_is_found_with_its_place(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "\n/* c */\nstatic int\nf(int a)\n{\n\treturn a;\n}\n"})
    function = index.function("f")
    assert function is not None
    assert (str(function.pos), function.last_line) == (f"{SVM}:3", 7)
    assert index.function("g") is None


def test_prototypes_are_no_functions_but_declared(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {KVM_H: "int f(void);\nextern int g;\n"})
    assert index.function("f") is None
    assert index.declared("f") == ctree.FunctionType(Basic("int"), ())
    assert index.declared("g") == Basic("int")
    assert index.declared("h") is None


def test_a_static_function_is_taken_from_the_file_of_use(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "static int f(void) { return 1; }\n", X86: "static int f(void) { return 2; }\n"})
    for path in (SVM, X86):
        function = index.function("f", path)
        assert function is not None
        assert function.pos.path == path


def test_a_global_function_is_preferred_to_a_static_one_elsewhere(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "static int f(void) { return 1; }\n", X86: "int f(void) { return 2; }\n"})
    function = index.function("f", SEV)
    assert function is not None
    assert function.pos.path == X86


def test_a_stub_of_another_configuration_is_passed_over(tmp_path: Path) -> None:
    header = "#ifdef CONFIG_A\nint f(void);\n#else\nstatic inline int f(void) { return 0; }\n#endif\n"
    files = {SVM_H: header, SVM: "#ifdef CONFIG_A\nint f(void)\n{\n\treturn 1;\n}\n#endif\n"}
    for name, config, path in (("on", {"CONFIG_A": "y"}, SVM), ("off", {}, SVM_H)):
        function = mini_index(tmp_path / name, files, config).function("f")
        assert function is not None
        assert function.pos.path == path


def test_braces_in_both_branches_of_a_conditional_are_followed(tmp_path: Path) -> None:
    branches = "#ifdef CONFIG_A\n\tif (a) {\n#else\n\tif (!a) {\n#endif\n\t\treturn 1;\n\t}\n"
    text = f"int f(int a)\n{{\n{branches}\treturn 0;\n}}\nint g;\n"
    function = mini_index(tmp_path, {SVM: text}).function("f")
    assert function is not None
    assert function.last_line == 11


def test_functions_inside_comments_and_macro_bodies_do_not_count(tmp_path: Path) -> None:
    text = "/*\nint f(void) { return 1; }\n*/\n#define M \\\nint g(void) { return 2; }\nint h(void) { return 3; }\n"
    index = mini_index(tmp_path, {SVM: text})
    assert [name for name in "fgh" if index.function(name)] == ["h"]


def test_functions_that_macros_define_are_found(tmp_path: Path) -> None:
    macro = "#define ACCESSORS(lname, uname) \\\nstatic inline int get_##lname(void) { return uname; }\n"
    header = f"{macro}\nACCESSORS(rax, RAX)\nACCESSORS(rbx, RBX)\n"
    function = mini_index(tmp_path, {SVM_H: header}).function("get_rbx")
    assert function is not None
    assert str(function.pos) == f"{SVM_H}:5"


def test_attributes_before_a_function_do_not_hide_it(tmp_path: Path) -> None:
    text = "__printf(1, 2) void f(const char *a)\n{\n}\nstatic noinline bool __init g(void)\n{\n\treturn 1;\n}\n"
    index = mini_index(tmp_path, {SVM: text, KVM_H: "typedef _Bool bool;\n"})
    assert index.function("f") is not None
    assert index.function("g") is not None


def test_structs_come_with_their_fields(tmp_path: Path) -> None:
    header = "struct a;\nstruct a *f(struct a *b);\nstruct a {\n\tint x;\n\tstruct inner { long y; } z;\n} __packed;\n"
    index = mini_index(tmp_path, {SVM_H: header})
    struct = index.struct("struct", "a")
    assert struct is not None
    assert struct.packed
    assert [field.name for field in struct.fields or ()] == ["x", "z"]
    assert index.struct("struct", "inner") is not None
    assert index.struct("union", "a") is None


def test_attributes_before_a_tag_do_not_hide_the_struct(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM_H: "struct __attribute__ ((__packed__)) a {\n\tint x;\n};\n"})
    struct = index.struct("struct", "a")
    assert struct is not None
    assert struct.packed


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("typedef unsigned long t;", Basic("unsigned long")),
        ("typedef struct a { int x; } __packed t;", None),
        ("typedef struct {\n\tint x;\n} t;", None),
        ("typedef int (*t)(int);", PointerType(ctree.FunctionType(Basic("int"), (ctree.Param("", Basic("int")),)))),
        ("typedef unsigned long t[2];", ctree.ArrayType(Basic("unsigned long"), None)),
        ("__extension__ typedef long long t;", Basic("long long")),
        ("typedef int __attribute__((aligned(8))) t;", Basic("int")),
    ],
)
def test_typedefs_are_found(tmp_path: Path, text: str, type_: ctree.CType | None) -> None:
    index = mini_index(tmp_path, {SVM_H: text + "\n"})
    found = index.typedef("t")
    assert index.is_typedef("t")
    assert not index.is_typedef("u")
    if type_ is None:
        assert isinstance(found, ctree.StructType)
    elif isinstance(type_, ctree.ArrayType):
        assert isinstance(found, ctree.ArrayType)
    else:
        assert found == type_


def test_typedefs_that_macros_define_are_found(tmp_path: Path) -> None:
    header = "#define COUNTER(name) typedef struct c_##name { int x; } c_##name##_t;\n\nCOUNTER(a)\n"
    index = mini_index(tmp_path, {SVM_H: header})
    assert index.is_typedef("c_a_t")
    assert index.struct("struct", "c_a") is not None


def test_enumerators_are_found_in_named_anonymous_and_nested_enums(tmp_path: Path) -> None:
    header = "enum a {\n\tA, /* B, */\n\tC = 1 << 2,\n};\nenum { D };\nstruct s {\n\tenum { E } e;\n};\n"
    index = mini_index(tmp_path, {SVM_H: header})
    found = {name: index.enumerator(name) for name in "ABCDE"}
    assert [name for name in "ABCDE" if found[name]] == ["A", "C", "D", "E"]
    assert found["C"] is not None
    assert found["C"][0].tag == "a"


def test_enums_are_found_by_their_tags(tmp_path: Path) -> None:
    header = (
        "enum a { A };\nenum __b { B };\nenum __packed c { C };\nstruct s { enum d { D } d; };\n/* enum e { E }; */\n"
    )
    index = mini_index(tmp_path, {SVM_H: header})
    assert [tag for tag in ("a", "__b", "c", "d", "e") if index.enum(tag)] == ["a", "__b", "c", "d"]


def test_a_variable_with_initializer_is_preferred(tmp_path: Path) -> None:
    text = "int a __read_mostly = 3;\nstatic int x, y[2];\n"
    index = mini_index(tmp_path, {SVM_H: "extern int a;\nextern int b;\n", SVM: text, X86: "int b;\n"})
    found = {name: index.variable(name) for name in ("a", "b", "x", "y")}
    assert all(found.values())
    assert found["a"] is not None
    assert found["a"].init == ctree.Num(ctree.Pos(SVM, 1), 3)
    assert found["b"] is not None
    assert found["b"].storage == ""
    assert index.variable("c") is None


def test_a_variable_with_a_table_is_found(tmp_path: Path) -> None:
    ops = "static struct ops svm_ops __initdata = {\n\t.a = f,\n\t.b = g,\n};\n"
    index = mini_index(tmp_path, {SVM: ops + "int (*const table[])(int) = {\n\t[1] = f,\n};\n"})
    for name in ("svm_ops", "table"):
        variable = index.variable(name)
        assert variable is not None
        assert isinstance(variable.init, ctree.InitList)


def test_variables_that_macros_define_are_found(tmp_path: Path) -> None:
    files = {KVM_H: "#define DEFINE_PER_CPU(type, name) type name\n"}
    files[SVM] = "static DEFINE_PER_CPU(struct d, svm_data);\n"
    assert mini_index(tmp_path / "a", files).variable("svm_data") is not None
    files[SVM] = "DEFINE_PER_CPU(struct d, svm_data) = { 1 };\n"
    variable = mini_index(tmp_path / "b", files).variable("svm_data")
    assert variable is not None
    assert variable.init is not None


def test_object_like_macros_are_expressions(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM_H: "#define A (B + 1)\n#define B 2\n#define F(x) x\n"})
    found = index.macro("A")
    assert isinstance(found, ctree.Binary)
    assert index.macro("F") is None
    assert index.macro("NONE") is None


def test_the_lists_of_x86_ops_are_read(tmp_path: Path) -> None:
    text = "KVM_X86_OP(a)\n/* KVM_X86_OP(no) */\n#if 0\nKVM_X86_OP(b)\n#endif\nKVM_X86_OP_OPTIONAL(c)\n"
    index = mini_index(tmp_path, {OPS: text})
    assert index.op_list("KVM_X86_OP") == ("a",)
    assert index.op_list("KVM_X86_OP_OPTIONAL") == ("c",)


def test_a_function_that_cannot_be_parsed_says_where_and_why(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "int f(int a)\n{\n\tgoto *a;\n}\n"})
    with pytest.raises(ParseError, match="svm.c:3: cannot parse a computed goto"):
        index.function("f")


def test_nesting_without_end_is_an_error_and_no_crash(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM: "int f(void)\n{\n\treturn " + "(" * 50_000 + "1" + ")" * 50_000 + ";\n}\n"})
    with pytest.raises(ParseError, match="so deep a nesting"):
        index.function("f")


@pytest.mark.parametrize(
    "text",
    [
        "struct x " + "__a__a" * 40 + ";",
        "a\n" * 20_000,
        "struct __a " * 5000,
        "typedef struct {\n} " + "__a__b" * 40 + "(\n",
    ],
)
def test_texts_made_to_stall_a_search_do_not(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    mini_index(tmp_path, {SVM: text})
    assert time.process_time() - start < 0.5


def test_tags_that_look_like_attributes_are_found(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM_H: "struct __a {\n\tint x;\n};\nstruct b {\n\tint y;\n} __aligned(8);\n"})
    assert index.struct("struct", "__a") is not None
    assert index.struct("struct", "b") is not None


def test_types_know_the_file_that_names_them(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {SVM_H: "typedef int t;\nstruct a { t x; };\n"})
    struct = index.struct("struct", "a")
    assert struct is not None
    assert struct.fields is not None
    assert struct.fields[0].type == TypeName("t", SVM_H)


def test_headers_of_other_machines_are_left_out(tmp_path: Path) -> None:
    index = mini_index(tmp_path, {"arch/x86/include/asm/a_32.h": "typedef int t;\n"})
    assert not index.is_typedef("t")
    assert not index.covers("arch/x86/include/asm/a_32.h")
    assert index.covers(SVM)
