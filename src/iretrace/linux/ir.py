"""Typed basic blocks: what C is lowered to, and what Python (later LLVM) is emitted from.

Expressions are pure: they read locals and memory and change nothing. Every expression has an integer type and a range
[low, high] that holds its value; arithmetic whose range may leave its type wraps when it is emitted. Effects are
operations of a block, in order. Conversions are explicit. Memory is addressed by a base expression plus a constant bit
offset, so that bit-fields, bytes and words are one thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from iretrace.linux.ctree import Pos
from iretrace.linux.types import INT, ULONG, Int

# Expressions. ----------------------------------------------------------------------------------------------------


class Expr:
    """Base of the expressions. reads: whether its value depends on memory or on a variable that may change."""

    __slots__ = ("high", "low", "reads", "type")

    type: Int
    low: int
    high: int
    reads: bool


class Const(Expr):
    """A constant. given: its value was given by a rule, so no condition is folded away because of it."""

    __slots__ = ("given", "value")

    def __init__(self, value: int, kind: Int = INT, given: bool = False) -> None:
        self.value = self.low = self.high = value
        self.type = kind
        self.reads = False
        self.given = given


class Local(Expr):
    """A variable or temporary of the function. Temporaries are set once."""

    __slots__ = ("index",)

    def __init__(self, index: int, kind: Int, low: int, high: int, temporary: bool) -> None:
        self.index = index
        self.type = kind
        self.low = low
        self.high = high
        self.reads = not temporary


class Frame(Expr):
    """The address of a variable in the function's stack frame."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.type = ULONG
        self.low = 0
        self.high = ULONG.high
        self.reads = False


class Load(Expr):
    """`width` bits of memory, `bit` bits after `base`, little endian. align: what is known of base, in bytes."""

    __slots__ = ("align", "base", "bit", "signed", "width")

    def __init__(self, base: Expr, bit: int, width: int, kind: Int, signed: bool, align: int) -> None:
        self.base = base
        self.bit = bit
        self.width = width
        self.type = kind
        self.signed = signed
        self.align = align
        self.low = -(1 << (width - 1)) if signed else 0
        self.high = (1 << (width - signed)) - 1
        self.reads = True


class Negate(Expr):
    """-x, or with invert ~x."""

    __slots__ = ("invert", "of", "wraps")

    def __init__(self, of: Expr, invert: bool, kind: Int) -> None:
        self.of = of
        self.invert = invert
        self.type = kind
        low, high = -of.high - invert, -of.low - invert
        self.wraps = not (kind.low <= low and high <= kind.high)
        self.low, self.high = (kind.low, kind.high) if self.wraps else (low, high)
        self.reads = of.reads


class Binary(Expr):
    """Arithmetic: + - * / % & | ^ << >>, both sides already of the right type."""

    __slots__ = ("left", "op", "right", "wraps")

    def __init__(self, op: str, left: Expr, right: Expr, kind: Int) -> None:
        self.op = op
        self.left = left
        self.right = right
        self.type = kind
        low, high = _range(op, left, right, kind)
        self.wraps = not (kind.low <= low and high <= kind.high)
        self.low, self.high = (kind.low, kind.high) if self.wraps else (low, high)
        self.reads = left.reads or right.reads


class Compare(Expr):
    """== != < <= > >=: 0 or 1, both sides of one type."""

    __slots__ = ("left", "op", "right")

    def __init__(self, op: str, left: Expr, right: Expr) -> None:
        self.op = op
        self.left = left
        self.right = right
        self.type = INT
        self.low = 0
        self.high = 1
        self.reads = left.reads or right.reads


class Convert(Expr):
    """A conversion that may change the value (to _Bool is a comparison instead)."""

    __slots__ = ("of",)

    def __init__(self, of: Expr, kind: Int) -> None:
        self.of = of
        self.type = kind
        self.low = kind.low
        self.high = kind.high
        self.reads = of.reads


def _range(op: str, left: Expr, right: Expr, kind: Int) -> tuple[int, int]:
    """Bounds of the exact result, before wrapping."""
    match op:
        case "+":
            return left.low + right.low, left.high + right.high
        case "-":
            return left.low - right.high, left.high - right.low
        case "*":
            ends = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
            return min(ends), max(ends)
        case "&":
            nonnegative = [e.high for e in (left, right) if e.low >= 0]
            return (0, min(nonnegative)) if nonnegative else (kind.low, kind.high)
        case "|" | "^":
            if left.low >= 0 and right.low >= 0:
                return 0, (1 << max(left.high, right.high).bit_length()) - 1
            return kind.low, kind.high
        case "<<":
            if isinstance(right, Const):
                return left.low << right.value, left.high << right.value
            return min(left.low, 0) << (kind.bits - 1), max(left.high, 0) << (kind.bits - 1)
        case ">>":
            if isinstance(right, Const):
                return left.low >> right.value, left.high >> right.value
            return min(left.low, 0), max(left.high, 0)
        case "/":
            bound = max(abs(left.low), abs(left.high))
            return (-bound if left.low < 0 or right.low < 0 else 0), bound
        case "%":
            bound = min(max(abs(left.low), abs(left.high)), max(abs(right.low), abs(right.high), 1) - 1)
            return (-bound if left.low < 0 else 0), bound
    raise AssertionError(op)


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions in the order of their evaluation."""
    match expr:
        case Binary() | Compare():
            return (expr.left, expr.right)
        case Load():
            return (expr.base,)
        case Negate() | Convert():
            return (expr.of,)
    return ()


def locals_of(expr: Expr) -> Iterator[int]:
    """Every use of a local in an expression, in the order of evaluation."""
    if isinstance(expr, Local):
        yield expr.index
    for child in children(expr):
        yield from locals_of(child)


# Operations. -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Mark:
    """A C statement starts here."""

    pos: Pos


@dataclass(slots=True)
class Set:
    """local = value."""

    pos: Pos
    local: int
    value: Expr


@dataclass(slots=True)
class Store:
    """Write the low `width` bits of value, `bit` bits after base. assumed: base may turn out to be less aligned."""

    pos: Pos
    base: Expr
    bit: int
    width: int
    value: Expr
    align: int
    assumed: bool


@dataclass(slots=True)
class Call:
    """Call; callee is a function's name in the program ("f12"), or an expression for a call through a pointer."""

    pos: Pos
    dest: int | None
    callee: str | Expr
    args: tuple[Expr, ...]


@dataclass(slots=True)
class Touch:
    """Announce an access to shared memory. sure: it is shared; else the run looks whether it is."""

    pos: Pos
    base: Expr
    bit: int
    width: int
    write: bool
    sure: bool = True


@dataclass(slots=True)
class Copy:
    """Copy `size` bytes between objects that are equal or do not overlap."""

    pos: Pos
    to: Expr
    source: Expr
    size: int


@dataclass(slots=True)
class Fill:
    """Zero `size` bytes."""

    pos: Pos
    to: Expr
    size: int


@dataclass(slots=True)
class Fail:
    """Raise Unmodelled: the function reached something that nobody answers."""

    pos: Pos
    what: str
    row: str


Op = Mark | Set | Store | Call | Touch | Copy | Fill | Fail


def operands(op: Op) -> tuple[Expr, ...]:
    """The expressions of an operation, in the order of their evaluation."""
    match op:
        case Set():
            return (op.value,)
        case Store():
            return (op.base, op.value)
        case Call():
            return op.args if isinstance(op.callee, str) else (op.callee, *op.args)
        case Touch():
            return (op.base,)
        case Copy():
            return (op.to, op.source)
        case Fill():
            return (op.to,)
        case Mark() | Fail():
            return ()


# Blocks. ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Jump:
    """Go to a block."""

    to: Block


@dataclass(slots=True)
class Branch:
    """Go to `then` if cond is not 0. A negated condition has its targets swapped already."""

    cond: Expr
    then: Block
    other: Block


@dataclass(slots=True)
class Choose:
    """A switch: the first case (low, high, block) that holds the value, else default."""

    value: Expr
    cases: list[tuple[int, int, Block]]
    default: Block


@dataclass(slots=True)
class Return:
    """Leave the function."""

    pos: Pos
    value: Expr | None


@dataclass(slots=True)
class Unreachable:
    """After a Fail."""


End = Jump | Branch | Choose | Return | Unreachable


@dataclass(slots=True, eq=False)
class Block:
    """A basic block.

    conditions: indices (in Lowered.conditions) of the leaf conditions that have been decided when the block ends by a
    branch, or, for the arm of a switch, when it is entered.
    """

    id: int
    ops: list[Op] = field(default_factory=list)
    end: End | None = None
    conditions: list[int] = field(default_factory=list)


def successors(block: Block) -> tuple[Block, ...]:
    """The blocks that may follow."""
    match block.end:
        case Jump():
            return (block.end.to,)
        case Branch():
            return (block.end.then, block.end.other)
        case Choose():
            return (*(b for _, _, b in block.end.cases), block.end.default)
    return ()


@dataclass(slots=True)
class Lowered:
    """A lowered function. Parameters and temporaries are locals, parameters first. stack: bytes of its frame.

    conditions: (path, line, ordinal) of its leaf conditions.
    """

    name: str
    pos: Pos
    params: int
    locals: list[str]
    entry: Block
    stack: int
    conditions: list[tuple[str, int, int]]
