"""Expressions as Python text.

Names in generated code: R the run, m its memory, g m.get, Z the read check, W the write check, s the stack frame, w, x
and y scratch, vN locals. No identifier of the tree is ever pasted into it.
"""

from __future__ import annotations

from collections.abc import Callable

from iretrace.linux.ir import Binary, Call, Compare, Const, Convert, Expr, Frame, Load, Local, Negate
from iretrace.linux.shape import Called, Decide, Not
from iretrace.linux.types import Int

WRAPPING = frozenset(("+", "-", "*", "&", "|", "^", "<<"))
"""Operations whose low bits depend on the low bits of their operands only."""

NEAR = 1 << 32


def mask(width: int) -> str:
    """As many ones, as text."""
    return hex((1 << width) - 1)


class Text:
    """Makes text; remembers which of the names above it used. mark: text that notes that a block is entered, or ""."""

    def __init__(self, mark: Callable[[Decide], str]) -> None:
        self.used: set[str] = set()
        self.mark = mark

    def use(self, name: str) -> str:
        """A name of the prologue."""
        self.used.add(name)
        return name

    # Values.

    def value(self, expr: Expr) -> str:
        """The exact C value, as an int."""
        match expr:
            case Const():
                return str(expr.value) if expr.value >= 0 else f"({expr.value})"
            case Local():
                return f"v{expr.index}"
            case Frame():
                return f"({self.use('s')}+{expr.offset})" if expr.offset else self.use("s")
            case Load():
                return self.load(expr)
            case Binary() | Negate():
                raw = self.raw(expr, expr.type.bits if expr.wraps else 0)
                return wrap(raw, expr.type, False) if expr.wraps else raw
            case Compare():
                return f"(+({self.value(expr.left)}{expr.op}{self.value(expr.right)}))"
            case Convert():
                return self.converted(expr)
            case Called():
                return self.called(expr.call)
        return f"(1 if {self.condition(expr)} else 0)"

    def raw(self, expr: Binary | Negate, bits: int = 0) -> str:
        """Arithmetic before it wraps. bits: how many low bits of the result matter; 0: all."""
        if isinstance(expr, Negate):
            return f"({'~' if expr.invert else '-'}{self.low(expr.of, bits)})"
        op = expr.op
        if op not in WRAPPING:
            bits = 0
        left = self.low(expr.left, bits)
        right = self.low(expr.right, 0 if op == "<<" else bits)
        if op in "/%":
            if expr.left.low >= 0 and expr.right.low >= 0:
                return f"({left}{'//' if op == '/' else op}{right})"
            return f"{'C_divide' if op == '/' else 'C_remainder'}({left},{right})"
        return f"({left}{op}{right})"

    def low(self, expr: Expr, bits: int) -> str:
        """A number that agrees with the value in the low bits; 0: the value."""
        if bits and expr.type.bits >= bits:
            if isinstance(expr, Convert):
                return self.low(expr.of, bits)
            if isinstance(expr, Negate) or (isinstance(expr, Binary) and expr.op in WRAPPING):
                return self.raw(expr, bits if expr.wraps else 0)
        return self.value(expr)

    def converted(self, expr: Convert) -> str:
        """A conversion."""
        of, kind = expr.of, expr.type
        fits = 0 <= of.low and of.high < 1 << kind.bits
        return wrap(self.value(of) if fits else self.low(of, kind.bits), kind, fits)

    def called(self, call: Call) -> str:
        """A call."""
        args = "".join("," + self.value(arg) for arg in call.args)
        if isinstance(call.callee, str):
            return f"{call.callee}(R{args})"
        return f"F[{self.value(call.callee)}](R{args})"

    # Memory.

    def address(self, base: Expr, distance: int) -> str:
        """base + distance, for an access: it need not wrap, no object is that near the ends of memory."""
        if isinstance(base, Const):
            return str(base.value + distance)
        if isinstance(base, Frame):
            return f"{self.use('s')}+{base.offset + distance}"
        near = isinstance(base, Binary) and base.op == "+" and -NEAR < base.right.low <= base.right.high < NEAR
        text = self.raw(base) if near and isinstance(base, Binary) else self.value(base)
        return f"{text}{distance:+d}" if distance else text

    def word(self, base: Expr, distance: int) -> str:
        """The 8-byte word `distance` bytes after base."""
        where = self.address(base, distance)
        self.used.update(("g", "Z"))
        if isinstance(base, Local | Const | Frame):
            return f"(g({where}) or Z[{where}])"
        return f"(g(x:={where}) or Z[x])"

    def load(self, expr: Load) -> str:
        """A load: inline if the position of the bits in the word is known."""
        base, at = located(expr.base, expr.bit)
        shift = at % 64
        if (expr.align < 8 and not isinstance(base, Const)) or shift + expr.width > 64:
            distance, bit = divmod(at, 8)
            text = f"C_load(R,{self.address(base, distance)},{bit},{expr.width})"
            return sign(text, expr.width) if expr.signed else text
        text = self.word(base, at // 64 * 8)
        if shift:
            text = f"({text}>>{shift})"
        if shift + expr.width < 64:
            text = f"({text}&{mask(expr.width)})"
        return sign(text, expr.width) if expr.signed else text

    # Conditions.

    def condition(self, expr: Expr, negated: bool = False) -> str:
        """A truth value, for `if`."""
        match expr:
            case Compare() if isinstance(expr.right, Const) and expr.right.value == 0 and expr.op in ("==", "!="):
                return self.condition(expr.left, negated != (expr.op == "=="))
            case Compare():
                text = f"{self.value(expr.left)}{expr.op}{self.value(expr.right)}"
                return f"not {text}" if negated else text
            case Decide():
                left, right = self.condition(expr.left), self.condition(expr.right)
                mark = self.mark(expr)
                if expr.any_:
                    text = f"(({left}) or {mark + ' or ' if mark else ''}({right}))"
                else:
                    text = f"(({left}) and ({mark + ' or ' if mark else ''}({right})))"
                return f"not {text}" if negated else text
            case Not():
                return self.condition(expr.of, not negated)
        return f"not {self.nonzero(expr)}" if negated else self.nonzero(expr)

    def nonzero(self, expr: Expr) -> str:
        """A number that is 0 if the value is: signs do not matter."""
        if isinstance(expr, Load) and expr.signed:
            expr = Load(expr.base, expr.bit, expr.width, expr.type, False, expr.align)
        elif isinstance(expr, Convert) and expr.type.signed:
            return f"({self.low(expr.of, expr.type.bits)}&{mask(expr.type.bits)})"
        return self.value(expr)


def located(base: Expr, bit: int) -> tuple[Expr, int]:
    """The same place, with a constant base made a multiple of 8."""
    if isinstance(base, Const):
        return Const(base.value & ~7), bit + 8 * (base.value & 7)
    return base, bit


def wrap(text: str, kind: Int, in_range: bool) -> str:
    """text as `kind` holds it. in_range: it is not negative and fits kind's width."""
    if not in_range:
        text = f"({text}&{mask(kind.bits)})"
    return sign(text, kind.bits) if kind.signed else text


def sign(text: str, width: int) -> str:
    """An unsigned number of some width, read as a signed one."""
    half = hex(1 << (width - 1))
    return f"(({text}^{half})-{half})"
