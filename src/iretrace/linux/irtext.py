"""Lowered functions (linux.ir) as JSON values, and read again.

What is emitted of a function that was read is what is emitted of the one that was told. What emitting does not look at
is left out: names of variables, and of types all but width and sign.

What is read was perhaps not written by us, and Python is made of it. All that gets into that is a number (of a size
that such numbers have, where something is made as large), one of the operators, or a callee's name of who reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from iretrace.linux import ir
from iretrace.linux.calls import EXACT
from iretrace.linux.ctree import Pos
from iretrace.linux.memory import STACK_SIZE
from iretrace.linux.shape import order
from iretrace.linux.types import Int

ARITHMETIC = frozenset("+ - * / % & | ^ << >>".split())
COMPARISONS = frozenset("== != < <= > >=".split())

WIDEST = EXACT.bits
"""Bits of the widest type."""

LARGEST = STACK_SIZE
"""No offset in a stack frame is larger, and no function has as many locals, blocks or conditions."""

LONGEST = 1 << 60
"""Bits of the largest distance or size."""


class Teller:
    """Tells one function. callee: a callee's name in the program as a JSON value."""

    def __init__(self, callee: Callable[[str], Any]) -> None:
        self._callee = callee
        self._path = ""
        self._numbers: dict[ir.Block, int] = {}

    def function(self, lowered: ir.Lowered) -> list[Any]:
        """It, before it is emitted: that uses it up."""
        self._path = lowered.pos.path
        blocks = order(lowered.entry)
        self._numbers = {block: number for number, block in enumerate(blocks)}
        told = [[list(map(self._op, block.ops)), self._end(block.end), block.conditions] for block in blocks]
        place = [lowered.pos.path, lowered.pos.line]
        return [lowered.name, *place, lowered.params, lowered.stack, lowered.conditions, told]

    def _pos(self, pos: Pos) -> Any:
        return pos.line if pos.path == self._path else [pos.path, pos.line]

    def _exprs(self, exprs: Sequence[ir.Expr]) -> list[Any]:
        return list(map(self._expr, exprs))

    def _expr(self, expr: ir.Expr) -> list[Any]:
        match expr:
            case ir.Const():
                return ["const", expr.value, _kind(expr.type), expr.given]
            case ir.Local():
                return ["local", expr.index, _kind(expr.type), expr.low, expr.high, not expr.reads]
            case ir.Frame():
                return ["frame", expr.offset]
            case ir.Load():
                base, kind = self._expr(expr.base), _kind(expr.type)
                return ["load", base, expr.bit, expr.width, kind, expr.signed, expr.align]
            case ir.Negate():
                return ["negate", self._expr(expr.of), expr.invert, _kind(expr.type)]
            case ir.Binary():
                return [expr.op, self._expr(expr.left), self._expr(expr.right), _kind(expr.type)]
            case ir.Compare():
                return [expr.op, self._expr(expr.left), self._expr(expr.right)]
            case ir.Convert():
                return ["convert", self._expr(expr.of), _kind(expr.type)]
        raise TypeError(f"no expression of a lowered function: {type(expr).__name__}")

    def _op(self, op: ir.Op) -> list[Any]:
        pos = self._pos(op.pos)
        match op:
            case ir.Mark():
                return ["mark", pos]
            case ir.Set():
                return ["set", pos, op.local, self._expr(op.value)]
            case ir.Store():
                base, value = self._expr(op.base), self._expr(op.value)
                return ["store", pos, base, op.bit, op.width, value, op.align, op.assumed]
            case ir.Call():
                if isinstance(op.callee, str):
                    return ["call", pos, op.dest, self._callee(op.callee), self._exprs(op.args)]
                return ["through", pos, op.dest, self._expr(op.callee), self._exprs(op.args)]
            case ir.Touch():
                return ["touch", pos, self._expr(op.base), op.bit, op.width, op.write, op.sure]
            case ir.Copy():
                return ["copy", pos, self._expr(op.to), self._expr(op.source), op.size]
            case ir.Fill():
                return ["fill", pos, self._expr(op.to), op.size]
            case ir.Fail():
                return ["fail", pos, op.what, op.row]

    def _end(self, end: ir.End | None) -> list[Any]:
        numbers = self._numbers
        match end:
            case ir.Jump():
                return ["jump", numbers[end.to]]
            case ir.Branch():
                return ["branch", self._expr(end.cond), numbers[end.then], numbers[end.other]]
            case ir.Choose():
                cases = [[low, high, numbers[to]] for low, high, to in end.cases]
                return ["choose", self._expr(end.value), cases, numbers[end.default]]
            case ir.Return():
                return ["return", self._pos(end.pos), None if end.value is None else self._expr(end.value)]
        return ["unreachable"]


class Reader:
    """Reads one function. callee: a callee's name in the program, of a JSON value. lines: those that are elsewhere now.
    Raises ValueError, TypeError or KeyError for what no Teller has told."""

    def __init__(self, callee: Callable[[Any], str], lines: Mapping[tuple[str, int], int]) -> None:
        self._callee = callee
        self._lines = lines
        self._path = ""
        self._blocks: list[ir.Block] = []

    def function(self, told: Sequence[Any]) -> ir.Lowered:
        """It."""
        name, self._path, line, params, stack, conditions, blocks = told
        self._blocks = [ir.Block(number) for number in range(len(blocks))]
        for block, (ops, end, decided) in zip(self._blocks, blocks, strict=True):
            block.ops = [self._op(*op) for op in ops]
            block.end = self._end(*end)
            block.conditions = list(map(_index, decided))
        known = [(str(path), self._line(path, line), _index(ordinal)) for path, line, ordinal in conditions]
        if any(number >= len(known) for block in self._blocks for number in block.conditions):
            raise ValueError("no condition")
        return ir.Lowered(str(name), self._pos(line), _index(params), [], self._blocks[0], _index(stack), known)

    def _pos(self, told: Any) -> Pos:
        path, line = (self._path, told) if type(told) is int else told
        return Pos(str(path), self._line(path, line))

    def _line(self, path: str, line: int) -> int:
        return self._lines.get((path, line), _number(line))

    def _expr(self, told: Sequence[Any]) -> ir.Expr:
        match told:
            case ["const", value, kind, given]:
                return ir.Const(_number(value), _type(kind), _flag(given))
            case ["local", index, kind, low, high, temporary]:
                return ir.Local(_index(index), _type(kind), _number(low), _number(high), _flag(temporary))
            case ["frame", offset]:
                return ir.Frame(_index(offset))
            case ["load", base, bit, width, kind, signed, align]:
                return ir.Load(*self._field(base, bit, width), _type(kind), _flag(signed), _size(align))
            case ["negate", of, invert, kind]:
                return ir.Negate(self._expr(of), _flag(invert), _type(kind))
            case ["convert", of, kind]:
                return ir.Convert(self._expr(of), _type(kind))
            case [op, left, right, kind] if op in ARITHMETIC:
                by = self._expr(right)
                if op in ("<<", ">>") and isinstance(by, ir.Const) and not 0 <= by.value <= WIDEST:
                    raise ValueError("no shift")
                return ir.Binary(op, self._expr(left), by, _type(kind))
            case [op, left, right] if op in COMPARISONS:
                return ir.Compare(op, self._expr(left), self._expr(right))
        raise ValueError("no expression")

    def _exprs(self, told: Sequence[Any]) -> tuple[ir.Expr, ...]:
        return tuple(map(self._expr, told))

    def _op(self, kind: str, place: Any, *parts: Any) -> ir.Op:
        pos = self._pos(place)
        match kind, parts:
            case "mark", ():
                return ir.Mark(pos)
            case "set", (local, value):
                return ir.Set(pos, _index(local), self._expr(value))
            case "store", (base, bit, width, value, align, assumed):
                return ir.Store(pos, *self._field(base, bit, width), self._expr(value), _size(align), _flag(assumed))
            case "call", (dest, callee, args):
                return ir.Call(pos, _optional(dest), self._callee(callee), self._exprs(args))
            case "through", (dest, callee, args):
                return ir.Call(pos, _optional(dest), self._expr(callee), self._exprs(args))
            case "touch", (base, bit, width, write, sure):
                return ir.Touch(pos, *self._field(base, bit, width), _flag(write), _flag(sure))
            case "copy", (to, source, size):
                return ir.Copy(pos, self._expr(to), self._expr(source), _size(size))
            case "fill", (to, size):
                return ir.Fill(pos, self._expr(to), _size(size))
            case "fail", (what, row):
                return ir.Fail(pos, str(what), str(row))
        raise ValueError("no operation")

    def _end(self, kind: str, *parts: Any) -> ir.End:
        match kind, parts:
            case "jump", (to,):
                return ir.Jump(self._block(to))
            case "branch", (cond, then, other):
                return ir.Branch(self._expr(cond), self._block(then), self._block(other))
            case "choose", (value, cases, default):
                chosen = [(_number(low), _number(high), self._block(to)) for low, high, to in cases]
                return ir.Choose(self._expr(value), chosen, self._block(default))
            case "return", (place, value):
                return ir.Return(self._pos(place), None if value is None else self._expr(value))
            case "unreachable", ():
                return ir.Unreachable()
        raise ValueError("no end of a block")

    def _block(self, number: Any) -> ir.Block:
        return self._blocks[_index(number)]

    def _field(self, base: Sequence[Any], bit: Any, width: Any) -> tuple[ir.Expr, int, int]:
        if not 0 < _number(width) <= WIDEST or abs(_number(bit)) > LONGEST:
            raise ValueError("no bits")
        return self._expr(base), bit, width


def _number(told: Any) -> int:
    if type(told) is not int:
        raise ValueError("no number")
    return told


def _index(told: Any) -> int:
    if not 0 <= _number(told) < LARGEST:
        raise ValueError("no such number")
    return int(told)


def _size(told: Any) -> int:
    if not 0 <= _number(told) <= LONGEST:
        raise ValueError("no size")
    return int(told)


def _optional(told: Any) -> int | None:
    return None if told is None else _index(told)


def _flag(told: Any) -> bool:
    if type(told) is not bool:
        raise ValueError("neither true nor false")
    return told


def _kind(kind: Int) -> str:
    """All that emitting looks at."""
    return f"{'i' if kind.signed else 'u'}{kind.bits}"


@cache
def _type(told: str) -> Int:
    sign, bits = told[:1], int(told[1:])
    if sign not in ("i", "u") or not 0 < bits <= WIDEST:
        raise ValueError("no type")
    return Int(told, bits, sign == "i", 0)
