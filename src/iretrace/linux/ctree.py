"""The syntax tree of the C that kernels are written in: what the parser makes and layout and lowering read.

Purely syntactic: a type is what was written, names are not resolved. Every node knows where its first token stands
in the tree (for code that came out of a macro: where the macro was used).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pos:
    """A place in the tree: path from the tree's root, line."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


# Types as written. ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Basic:
    """`unsigned long` and the like: the specifier words in canonical order (see parse.canonical_basic)."""

    name: str


@dataclass(frozen=True, slots=True)
class TypeName:
    """A typedef's name. path: file of use, since a few typedefs are defined more than once."""

    name: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct or union. name is "" for anonymous members; bits is a bit-field's width."""

    name: str
    type: CType
    bits: Expr | None
    pos: Pos
    packed: bool = False
    align: Expr | None = None


@dataclass(frozen=True, slots=True)
class StructType:
    """`struct tag`, `union tag`; fields is None where only the tag is given."""

    kind: str
    tag: str
    fields: tuple[Field, ...] | None = None
    packed: bool = False
    align: Expr | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class EnumType:
    """`enum tag`; items is None where only the tag is given."""

    tag: str
    items: tuple[tuple[str, Expr | None], ...] | None = None


@dataclass(frozen=True, slots=True)
class PointerType:
    """Pointer to `to`."""

    to: CType


@dataclass(frozen=True, slots=True)
class ArrayType:
    """Array; size is None for `[]`."""

    of: CType
    size: Expr | None


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter; name is "" in declarations without names."""

    name: str
    type: CType


@dataclass(frozen=True, slots=True)
class FunctionType:
    """A function type."""

    returns: CType
    params: tuple[Param, ...]
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class TypeofType:
    """`typeof(expr)` or `typeof(type)`; also __typeof__, __auto_type (of the initializer) and typeof_unqual."""

    of: Expr | CType


CType = Basic | TypeName | StructType | EnumType | PointerType | ArrayType | FunctionType | TypeofType


# Expressions. ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Num:
    """Integer or character constant. suffix: "", u, l, ul, ll or ull (lower case); hex: written in base 8 or 16."""

    pos: Pos
    value: int
    suffix: str = ""
    hex: bool = False


@dataclass(frozen=True, slots=True)
class Str:
    """String constant, adjacent ones joined, escapes decoded."""

    pos: Pos
    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier used as a value."""

    pos: Pos
    name: str


@dataclass(frozen=True, slots=True)
class Unary:
    """op: - + ! ~ * & ++ -- (the last two as prefix)."""

    pos: Pos
    op: str
    of: Expr


@dataclass(frozen=True, slots=True)
class Postfix:
    """op: ++ or --."""

    pos: Pos
    op: str
    of: Expr


@dataclass(frozen=True, slots=True)
class Binary:
    """op: any binary operator, && || and , included."""

    pos: Pos
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Assign:
    """op: = or a compound one."""

    pos: Pos
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional:
    """`c ? a : b`; then is None for GNU's `c ?: b`."""

    pos: Pos
    cond: Expr
    then: Expr | None
    other: Expr


@dataclass(frozen=True, slots=True)
class Call:
    """A call. function may be any expression."""

    pos: Pos
    function: Expr
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """`of.name` or `of->name`."""

    pos: Pos
    of: Expr
    name: str
    arrow: bool


@dataclass(frozen=True, slots=True)
class Index:
    """`of[index]`."""

    pos: Pos
    of: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Cast:
    """`(type)of`."""

    pos: Pos
    type: CType
    of: Expr


@dataclass(frozen=True, slots=True)
class SizeOf:
    """sizeof expr-or-type; align: _Alignof / __alignof__."""

    pos: Pos
    of: Expr | CType
    align: bool = False


@dataclass(frozen=True, slots=True)
class OffsetOf:
    """__builtin_offsetof(type, path); path holds member names and index expressions."""

    pos: Pos
    type: CType
    path: tuple[str | Expr, ...]


@dataclass(frozen=True, slots=True)
class StatementExpr:
    """GNU `({ ... })`; its value is that of the last expression statement."""

    pos: Pos
    body: Block


@dataclass(frozen=True, slots=True)
class InitList:
    """`{ ... }`: (designators, value) pairs; a designator is a member name (str) or an index expression
    (a range `[a ... b]` is a tuple of two)."""

    pos: Pos
    items: tuple[tuple[tuple[str | Expr | tuple[Expr, Expr], ...], Expr], ...]


@dataclass(frozen=True, slots=True)
class CompoundLiteral:
    """`(type){ ... }`."""

    pos: Pos
    type: CType
    init: InitList


@dataclass(frozen=True, slots=True)
class Generic:
    """_Generic(control, type: expr, ..., default: expr); the default has type None."""

    pos: Pos
    control: Expr
    choices: tuple[tuple[CType | None, Expr], ...]


@dataclass(frozen=True, slots=True)
class TypesCompatible:
    """__builtin_types_compatible_p(a, b)."""

    pos: Pos
    left: CType
    right: CType


Expr = (
    Num | Str | Name | Unary | Postfix | Binary | Assign | Conditional | Call | Member | Index | Cast | SizeOf
    | OffsetOf | StatementExpr | InitList | CompoundLiteral | Generic | TypesCompatible
)  # fmt: skip


# Statements. ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declaration:
    """One declared variable (a declaration of several is several of these). storage: "", static, extern, register.

    cleanup: the call that is due when its scope is left.
    """

    pos: Pos
    name: str
    type: CType
    init: Expr | None
    storage: str = ""
    const: bool = False
    cleanup: Expr | None = None


@dataclass(frozen=True, slots=True)
class ExprStatement:
    """`expr;`"""

    pos: Pos
    expr: Expr


@dataclass(frozen=True, slots=True)
class Block:
    """`{ ... }`"""

    pos: Pos
    items: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class If:
    """if / else."""

    pos: Pos
    cond: Expr
    then: Statement
    other: Statement | None


@dataclass(frozen=True, slots=True)
class While:
    """while; do_first for do ... while."""

    pos: Pos
    cond: Expr
    body: Statement
    do_first: bool = False


@dataclass(frozen=True, slots=True)
class For:
    """for; init holds declarations or one expression statement."""

    pos: Pos
    init: tuple[Statement, ...]
    cond: Expr | None
    step: Expr | None
    body: Statement


@dataclass(frozen=True, slots=True)
class Switch:
    """switch."""

    pos: Pos
    value: Expr
    body: Statement


@dataclass(frozen=True, slots=True)
class Case:
    """`case low:` or `case low ... high:`; low is None for `default:`."""

    pos: Pos
    low: Expr | None
    high: Expr | None
    body: Statement


@dataclass(frozen=True, slots=True)
class Label:
    """`name: statement`."""

    pos: Pos
    name: str
    body: Statement


@dataclass(frozen=True, slots=True)
class Goto:
    """goto."""

    pos: Pos
    label: str


@dataclass(frozen=True, slots=True)
class Return:
    """return."""

    pos: Pos
    value: Expr | None


@dataclass(frozen=True, slots=True)
class Break:
    """break."""

    pos: Pos


@dataclass(frozen=True, slots=True)
class Continue:
    """continue."""

    pos: Pos


@dataclass(frozen=True, slots=True)
class Empty:
    """`;`, and declarations that declare nothing (static assertions, local extern functions)."""

    pos: Pos


@dataclass(frozen=True, slots=True)
class Asm:
    """Inline assembly: its text, joined from tokens. A function that reaches one needs a rule row."""

    pos: Pos
    text: str


Statement = (
    Declaration | ExprStatement | Block | If | While | For | Switch | Case | Label | Goto | Return | Break | Continue
    | Empty | Asm
)  # fmt: skip


# Top level. -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Function:
    """A function definition. last_line: the line of its closing brace."""

    pos: Pos
    name: str
    type: FunctionType
    body: Block
    static: bool
    last_line: int
