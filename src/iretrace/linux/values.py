"""Lowering of expressions to values, with every conversion that C makes; conditions become control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iretrace.linux import ctree, fold
from iretrace.linux.builder import is_scalar, word_type
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Block, Const, Expr, Local, Set, Unreachable
from iretrace.linux.places import NOTHING, Place, Places, Val
from iretrace.linux.types import (
    INT,
    LLONG,
    LONG,
    UINT,
    ULLONG,
    ULONG,
    VOID,
    Array,
    Func,
    Int,
    Ptr,
    Struct,
    Type,
    Void,
    common,
    decay,
    describe,
    promote,
    same_type,
)
from iretrace.linux.unmodelled import Unmodelled

COMPARISONS = frozenset(("==", "!=", "<", "<=", ">", ">="))


class Values(Places):
    """Expressions. Calls and statements inside expressions are left to subclasses."""

    def call(self, expr: ctree.Call, used: bool) -> Val:
        """A call. used: its value matters."""
        raise NotImplementedError

    def statement_expr(self, expr: ctree.StatementExpr, used: bool) -> Val:
        """`({ ... })`."""
        raise NotImplementedError

    def rvalue(self, expr: ctree.Expr) -> Val:
        """The value of an expression; a struct's is its address."""
        lower = RVALUES.get(type(expr))
        if lower is None:
            raise Unmodelled("an initializer list where a value is needed", expr.pos)
        return lower(self, expr)

    def loaded(self, expr: ctree.Member | ctree.Index | ctree.Str | ctree.CompoundLiteral) -> Val:
        """The value of a place."""
        return self.load(self.place(expr), expr.pos)

    def size_of(self, expr: ctree.SizeOf) -> Val:
        """sizeof and _Alignof."""
        of = expr.of
        kind = self.resolve(of) if isinstance(of, ctree.CType) else self.type_of(of, self.path)
        size = self.types.align_of(kind) if expr.align else self.types.size_of(kind)
        return Val(ULONG, Const(size, ULONG))

    def types_compatible(self, expr: ctree.TypesCompatible) -> Val:
        """__builtin_types_compatible_p."""
        return Val(INT, Const(int(same_type(self.resolve(expr.left), self.resolve(expr.right)))))

    def name(self, expr: ctree.Name) -> Val:
        """A name."""
        variable = self.lookup(expr.name, expr.pos)
        if variable.value is not None:
            return Val(variable.type, Const(variable.value, word_type(variable.type), variable.given))
        return self.load(self.name_place(expr), expr.pos)

    def unary(self, expr: ctree.Unary) -> Val:
        """Prefix operators."""
        if expr.op == "*":
            return self.load(self.place(expr), expr.pos)
        if expr.op == "&":
            if isinstance(expr.of, ctree.Unary) and expr.of.op == "*":
                return self.rvalue(expr.of.of)
            place = self.place(expr.of)
            if isinstance(place.type, Func):
                return Val(Ptr(place.type), place.base)
            return self.address(place, expr.pos)
        if expr.op in ("++", "--"):
            return self.step(expr.of, expr.op, expr.pos, before=False)
        value = self.rvalue(expr.of)
        if expr.op == "!":
            return Val(INT, fold.untruth(self.scalar(value, expr.pos)))
        if not isinstance(value.type, Int):
            raise Unmodelled(f"`{expr.op}` of {describe(value.type)}", expr.pos)
        kind = promote(value.type)
        value = self.convert(value, kind, expr.pos)
        if expr.op == "+":
            return value
        return Val(kind, fold.negate(value.ir, expr.op == "~", kind))

    def scalar(self, value: Val, pos: Pos) -> Expr:
        """A value that can be compared with 0."""
        if not is_scalar(value.type):
            raise Unmodelled(f"a value of type {describe(value.type)} as a truth value", pos)
        return value.ir

    def step(self, expr: ctree.Expr, op: str, pos: Pos, before: bool) -> Val:
        """++ and --; before: the value is that before the step."""
        place = self.place(expr)
        old = self.load(place, pos)
        if before and old.ir.reads:
            old = old._replace(ir=self.temp(old.ir))
        new = self.arithmetic(op[0], old, Val(INT, Const(1)), pos)
        stored = self.store(place, new, pos)
        return old if before else stored

    def binary(self, expr: ctree.Binary) -> Val:
        """Binary operators."""
        op = expr.op
        if op == ",":
            self.effect(expr.left)
            return self.rvalue(expr.right)
        if op in ("&&", "||"):
            return self.logical(expr)
        left = self.rvalue(expr.left)
        mark = self.mark()
        right = self.rvalue(expr.right)
        left = left._replace(ir=self.keep(left.ir, mark))
        if op in COMPARISONS:
            return self.comparison(op, left, right, expr.pos)
        return self.arithmetic(op, left, right, expr.pos)

    def arithmetic(self, op: str, left: Val, right: Val, pos: Pos) -> Val:
        """+ - * / % & | ^ << >> with all conversions."""
        if isinstance(left.type, Ptr | Func) or isinstance(right.type, Ptr | Func):
            return self.pointer_arithmetic(op, left, right, pos)
        if not isinstance(left.type, Int) or not isinstance(right.type, Int):
            raise Unmodelled(f"`{op}` of {describe(left.type)} and {describe(right.type)}", pos)
        if op in ("<<", ">>"):
            kind = promote(left.type)
            count = self.convert(right, promote(right.type), pos)
            return Val(kind, fold.binary(op, self.convert(left, kind, pos).ir, count.ir, kind))
        kind = common(left.type, right.type)
        a, b = self.convert(left, kind, pos).ir, self.convert(right, kind, pos).ir
        return Val(kind, fold.binary(op, a, b, kind))

    def pointer_arithmetic(self, op: str, left: Val, right: Val, pos: Pos) -> Val:
        """+ and - with pointers."""
        if op == "-" and isinstance(left.type, Ptr) and isinstance(right.type, Ptr):
            size = self.types.size_of(left.type.to)
            difference = fold.convert(fold.binary("-", left.ir, right.ir, ULONG), LONG)
            return Val(LONG, fold.binary("/", difference, Const(size or 1, LONG), LONG))
        if op == "+" and isinstance(right.type, Ptr):
            left, right = right, left
        if op not in "+-" or not isinstance(right.type, Int) or not isinstance(left.type, Ptr):
            raise Unmodelled(f"`{op}` of {describe(left.type)} and {describe(right.type)}", pos)
        return self.offset(left, right, 1 if op == "+" else -1)

    def offset(self, pointer: Val, count: Val, sign: int = 1) -> Val:
        """pointer + sign * count."""
        assert isinstance(pointer.type, Ptr)
        size = self.types.size_of(pointer.type.to) * sign
        ir = count.ir
        if isinstance(ir, Const):
            distance: Expr = Const(ir.value * size, LONG, ir.given)
        else:
            wide = fold.convert(ir, LONG)
            distance = fold.binary("*", wide, Const(size, LONG), LONG) if size != 1 else wide
        return Val(Ptr(pointer.type.to), fold.add(pointer.ir, distance))

    def comparison(self, op: str, left: Val, right: Val, pos: Pos) -> Val:
        """== != < <= > >=; pointers compare as unsigned numbers."""
        if isinstance(left.type, Int) and isinstance(right.type, Int):
            kind = common(left.type, right.type)
        else:
            kind = ULONG
        a = fold.convert(self.scalar(left, pos), kind)
        b = fold.convert(self.scalar(right, pos), kind)
        return Val(INT, fold.compare(op, a, b))

    def cast(self, expr: ctree.Cast) -> Val:
        """`(type)value`."""
        kind = self.resolve(expr.type)
        if isinstance(kind, Void):
            self.effect(expr.of)
            return Val(VOID, NOTHING)
        return self.convert(self.rvalue(expr.of), kind, expr.pos)

    def assign(self, expr: ctree.Assign) -> Val:
        """= and compound assignment. As in GCC the right side is evaluated first, unless it is a call after `=`."""
        if expr.op == "=" and isinstance(expr.right, ctree.Call):
            place = self.place(expr.left)
            mark = self.mark()
            value = self.rvalue(expr.right)
            return self.store(place._replace(base=self.keep(place.base, mark)), value, expr.pos)
        value = self.rvalue(expr.right)
        mark = self.mark()
        place = self.place(expr.left)
        value = value._replace(ir=self.keep(value.ir, mark))
        if expr.op == "=":
            return self.store(place, value, expr.pos)
        if place.local is None and place.base.reads:
            place = place._replace(base=self.temp(place.base))
        mark = self.mark()
        old = self.load(place, expr.pos)
        value = value._replace(ir=self.keep(value.ir, mark))
        return self.store(place, self.arithmetic(expr.op[:-1], old, value, expr.pos), expr.pos)

    def effect(self, expr: ctree.Expr) -> None:
        """Evaluate for the effects only."""
        match expr:
            case ctree.Call():
                self.call(expr, False)
            case ctree.StatementExpr():
                self.statement_expr(expr, False)
            case ctree.Cast() if isinstance(self.resolve(expr.type), Void):
                self.effect(expr.of)
            case ctree.Binary(op=","):
                self.effect(expr.left)
                self.effect(expr.right)
            case ctree.Postfix():
                self.step(expr.of, expr.op, expr.pos, before=False)
            case ctree.Conditional() if expr.then is not None:
                yes, no, end = self.new_block(), self.new_block(), self.new_block()
                self.test(expr.cond, yes, no)
                for block, arm in ((yes, expr.then), (no, expr.other)):
                    self.enter(block)
                    self.effect_of_arm(arm)
                    self.jump(end)
                self.enter(end)
            case ctree.Binary(op="&&" | "||"):
                yes, end = self.new_block(), self.new_block()
                self.test(expr.left, *((yes, end) if expr.op == "&&" else (end, yes)))
                self.enter(yes)
                self.effect_of_arm(expr.right)
                self.jump(end)
                self.enter(end)
            case _:
                self.rvalue(expr)

    def effect_of_arm(self, expr: ctree.Expr) -> None:
        """Evaluate what may or may not be reached."""
        if not self.dead:
            with self.reporting():
                self.effect(expr)

    def offset_of(self, expr: ctree.OffsetOf) -> Val:
        """offsetof."""
        place = Place(self.resolve(expr.type), None, NOTHING)
        for step in expr.path:
            if isinstance(step, str):
                place = self.select(place, step, expr.pos)
                continue
            if not isinstance(place.type, Array):
                raise Unmodelled("offsetof with an index into no array", expr.pos)
            number = self.rvalue(step).ir
            size = 8 * self.types.size_of(place.type.of)
            if not isinstance(number, Const):
                raise Unmodelled("offsetof with a variable index", expr.pos)
            place = place._replace(type=place.type.of, bit=place.bit + size * number.value)
        return Val(ULONG, Const(place.bit // 8, ULONG))

    def generic(self, expr: ctree.Generic) -> Val:
        """_Generic."""
        kind = decay(self.type_of(expr.control, self.path))
        default = None
        for choice, value in expr.choices:
            if choice is None:
                default = value
            elif same_type(self.resolve(choice), kind):
                return self.rvalue(value)
        if default is None:
            raise Unmodelled(f"_Generic without a choice for {describe(kind)}", expr.pos)
        return self.rvalue(default)

    # Conditions.

    def enter(self, block: Block) -> None:
        """Go on in a block; if nothing leads to it, what follows is dead."""
        self.block = block
        if block not in self.reached:
            block.end = Unreachable()

    def test(self, expr: ctree.Expr, yes: Block, no: Block) -> None:
        """Go to `yes` or `no`; each operand of && and || is a leaf condition of its own."""
        match expr:
            case ctree.Binary(op="&&" | "||"):
                between = self.new_block()
                if expr.op == "&&":
                    self.test(expr.left, between, no)
                else:
                    self.test(expr.left, yes, between)
                self.enter(between)
                self.test(expr.right, yes, no)
            case ctree.Binary(op=","):
                self.effect_of_arm(expr.left)
                self.test(expr.right, yes, no)
            case ctree.Unary(op="!"):
                self.test(expr.of, no, yes)
            case ctree.Call(function=ctree.Name(name="__builtin_expect")):
                self.test(expr.args[0], yes, no)
            case _:
                with self.reporting():
                    cond = self.scalar(self.rvalue(expr), expr.pos)
                    self.branch(fold.truth(cond), yes, no, expr.pos)

    def merge(self, arms: list[tuple[Block, Expr]], pos: Pos) -> Expr:
        """Continue after alternatives, each a block and the value it ends with."""
        alive = [(block, value) for block, value in arms if block.end is None]
        if len(alive) == 1:
            self.block, value = alive[0]
            return value
        result = Local(len(self.variables), alive[0][1].type if alive else INT, 0, 0, True)
        self.variables.append("")
        end = self.new_block()
        if alive:
            result.low = min(value.low for _, value in alive)
            result.high = max(value.high for _, value in alive)
        for block, value in alive:
            block.ops.append(Set(pos, result.index, value))
            self.block = block
            self.jump(end)
        self.enter(end)
        return result

    def logical(self, expr: ctree.Binary) -> Val:
        """&& and || as a value."""
        yes, no = self.new_block(), self.new_block()
        self.test(expr, yes, no)
        self.enter(yes)
        self.enter(no)
        return Val(INT, self.merge([(yes, Const(1)), (no, Const(0))], expr.pos))

    def conditional(self, expr: ctree.Conditional) -> Val:
        """`c ? a : b` and `c ?: b`."""
        yes, no = self.new_block(), self.new_block()
        if expr.then is None:
            cond = self.rvalue(expr.cond)
            if cond.ir.reads:
                cond = cond._replace(ir=self.temp(cond.ir))
            self.branch(fold.truth(self.scalar(cond, expr.cond.pos)), yes, no, expr.cond.pos)
        else:
            self.test(expr.cond, yes, no)
        self.enter(yes)
        first: Val | None = cond if expr.then is None else self.arm(expr.then)
        yes = self.block
        self.enter(no)
        second = self.arm(expr.other)
        no = self.block
        if first is None or second is None:
            first = second = first or second
            if first is None:
                raise self.fail("an expression of unknown type")
        assert second is not None
        kind = self.balance(first, second, expr.pos)
        arms = []
        for block, value in ((yes, first), (no, second)):
            self.block = block
            arms.append((block, self.convert(value, kind, expr.pos).ir))
        return Val(kind, self.merge(arms, expr.pos))

    def arm(self, expr: ctree.Expr) -> Val | None:
        """An alternative of ?:. One that cannot be reached matters for its type only; None: not even that is known."""
        if not self.dead:
            with self.reporting():
                return self.rvalue(expr)
        try:
            return self.dry(lambda: self.rvalue(expr))
        except Unmodelled:
            return None

    def balance(self, first: Val, second: Val, pos: Pos) -> Type:
        """The type of ?: with these alternatives."""
        a, b = decay(first.type), decay(second.type)
        if isinstance(a, Int) and isinstance(b, Int):
            return common(a, b)
        if isinstance(a, Void) or isinstance(b, Void):
            return VOID
        if isinstance(a, Struct) and isinstance(b, Struct):
            return a
        if isinstance(a, Ptr) and isinstance(b, Ptr):
            if is_null(first):
                return b
            if is_null(second):
                return a
            return a if isinstance(a.to, Void) or not isinstance(b.to, Void) else b
        if isinstance(a, Ptr) and isinstance(b, Int):
            return a
        if isinstance(b, Ptr) and isinstance(a, Int):
            return b
        raise Unmodelled(f"`?:` of {describe(a)} and {describe(b)}", pos)


def is_null(value: Val) -> bool:
    """Whether it is a null pointer constant: 0 or (void *)0."""
    if not isinstance(value.ir, Const) or value.ir.value or value.ir.given:
        return False
    return isinstance(value.type, Int) or (isinstance(value.type, Ptr) and isinstance(value.type.to, Void))


def _number(expr: ctree.Num) -> Val:
    """A constant: the first type of C's list that holds it."""
    suffix = expr.suffix
    candidates: tuple[Int, ...] = (INT, UINT, LONG, ULONG) if expr.hex else (INT, LONG, ULONG)
    if "u" in suffix:
        candidates = (UINT, ULONG)
    if "ll" in suffix:
        candidates = (ULLONG,) if "u" in suffix else (LLONG, ULLONG)
    elif "l" in suffix:
        candidates = (ULONG,) if "u" in suffix else (LONG, ULONG)
    for kind in candidates:
        if kind.low <= expr.value <= kind.high:
            return Val(kind, Const(expr.value, kind))
    raise Unmodelled(f"constant {expr.value} fits no type", expr.pos)


RVALUES: dict[type, Callable[[Values, Any], Val]] = {
    ctree.Name: Values.name,
    ctree.Num: lambda self, expr: _number(expr),
    ctree.Member: Values.loaded,
    ctree.Binary: Values.binary,
    ctree.Unary: Values.unary,
    ctree.Call: lambda self, expr: self.call(expr, True),
    ctree.Cast: Values.cast,
    ctree.Assign: Values.assign,
    ctree.Conditional: Values.conditional,
    ctree.Index: Values.loaded,
    ctree.Str: Values.loaded,
    ctree.CompoundLiteral: Values.loaded,
    ctree.Postfix: lambda self, expr: self.step(expr.of, expr.op, expr.pos, before=True),
    ctree.StatementExpr: lambda self, expr: self.statement_expr(expr, True),
    ctree.SizeOf: Values.size_of,
    ctree.OffsetOf: Values.offset_of,
    ctree.TypesCompatible: Values.types_compatible,
    ctree.Generic: Values.generic,
}
"""How the value of each kind of expression is lowered."""
