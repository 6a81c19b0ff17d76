"""Lowering of calls: C functions, function pointers, static calls, models, and what GCC or the kernel builds in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iretrace.linux import ctree, fold
from iretrace.linux.answers import Model, Neutral, Site, Value
from iretrace.linux.builder import Mark, word_type
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import Call, Const, Expr, Frame, Local
from iretrace.linux.places import NOTHING, Place, Val
from iretrace.linux.text import text_of
from iretrace.linux.types import (
    BOOL,
    INT,
    LONG,
    ULONG,
    VOID,
    Func,
    Int,
    Ptr,
    Struct,
    Type,
    Void,
    basic,
    describe,
    promote,
)
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.values import Values

EXACT = Int("exact", 512, True, 9)
"""Wide enough for any result of one operation: nothing wraps."""

STATIC_CALLS = {
    "static_call": "",
    "static_call_cond": "",
    "static_call_mod": "",
    "kvm_x86_call": "kvm_x86_",
    "kvm_pmu_call": "kvm_x86_pmu_",
}
"""Macros that name the target of a static call: what to put before the name they are given."""

STATIC_KEYS = frozenset(
    ("static_branch_likely", "static_branch_unlikely", "static_key_enabled", "static_key_true", "static_key_false")
)

MEMORY = {"memcpy": "memcpy", "memmove": "memcpy", "memset": "memset", "memcmp": "memcmp", "strlen": "strlen"}
"""Functions that GCC knows, answered by memory.py."""

BITS = {
    "ffs": (32, "ffs"), "ffsl": (64, "ffs"), "ffsll": (64, "ffs"),
    "clz": (32, "clz"), "clzl": (64, "clz"), "clzll": (64, "clz"),
    "ctz": (32, "ctz"), "ctzl": (64, "ctz"), "ctzll": (64, "ctz"),
    "popcount": (32, "popcount"), "popcountl": (64, "popcount"), "popcountll": (64, "popcount"),
    "bswap16": (16, "bswap"), "bswap32": (32, "bswap"), "bswap64": (64, "bswap"),
}  # fmt: skip
UNSIGNED_OF = {16: "unsigned short", 32: "unsigned int", 64: "unsigned long"}


class Calls(Values):
    """Calls."""

    def call(self, expr: ctree.Call, used: bool) -> Val:
        """A call."""
        function = expr.function
        if isinstance(function, ctree.Call) and isinstance(function.function, ctree.Name):
            prefix = STATIC_CALLS.get(function.function.name)
            if prefix is not None:
                return self.static_call(prefix, function, expr, used)
        if isinstance(function, ctree.Name) and not self.is_local(function.name):
            return self.named_call(function.name, expr, used)
        return self.pointer_call(self.rvalue(function), expr, used)

    def is_local(self, name: str) -> bool:
        """Whether a name is declared in the function."""
        return any(name in scope for scope in self.scopes)

    # By name.

    def named_call(self, name: str, expr: ctree.Call, used: bool) -> Val:
        """Call what has this name: a builtin, what a rule answers, an intrinsic macro, a function, a pointer."""
        if name.startswith("__builtin_"):
            return self.builtin(name.removeprefix("__builtin_"), expr)
        answer = self.names.rules.function(name, self.path)
        if answer is None and name in INTRINSICS:
            return INTRINSICS[name](self, expr)
        if answer is None and name in STATIC_KEYS:
            return self.static_key(expr)
        if isinstance(answer, Neutral) and not used and not self.unevaluated:
            return self.nothing(expr)
        prototype = self.names.prototype(name, expr.pos)
        if self.unevaluated:
            return self.call_type(name, answer, prototype, expr)
        match answer:
            case Neutral():
                return self.neutral(name, prototype, expr)
            case Value():
                self.effects_of(expr.args)
                kind = self.result_type(answer.returns, prototype, (), expr.pos)
                if isinstance(kind, Void):
                    return Val(VOID, NOTHING)
                return Val(kind, Const(word_type(kind).wrap(answer.value), word_type(kind), given=True))
            case Model():
                return self.model_call(name, answer, prototype, expr)
        if prototype is None and self.is_pointer_variable(name, expr.pos):
            return self.pointer_call(self.rvalue(expr.function), expr, used)
        if name in MEMORY or name.removeprefix("__") in MEMORY:
            return self.memory_call(MEMORY[name.removeprefix("__")], expr)
        callee = self.names.callee(name, expr.pos)
        args = self.arguments(callee.type, expr.args, expr.pos)
        return self.emit_call(callee.name, args, callee.type.returns, expr.pos, used)

    def is_pointer_variable(self, name: str, pos: Pos) -> bool:
        """Whether it is a global variable, which can then only be a function pointer."""
        try:
            return isinstance(self.names.identifier(name, pos, True).type, Ptr)
        except Unmodelled:
            return False

    def call_type(self, name: str, answer: object, prototype: Func | None, expr: ctree.Call) -> Val:
        """The type of a call that is not evaluated."""
        if prototype is not None:
            return Val(prototype.returns, _unknown(prototype.returns))
        if isinstance(answer, Model | Value):
            kinds = tuple(self.type_of(arg, self.path) for arg in expr.args)
            kind = self.result_type(answer.returns, None, kinds, expr.pos)
            return Val(kind, _unknown(kind))
        return Val(INT, _unknown(INT))

    def result_type(self, written: str, prototype: Func | None, args: tuple[Type, ...], pos: Pos) -> Type:
        """The type of what a rule answers (see Model.returns)."""
        if not written:
            return INT if prototype is None else prototype.returns
        if written[0] == "*" and written[1:].isdigit():
            kind = args[int(written[1:])]
            if isinstance(kind, Ptr):
                return kind.to
            raise Unmodelled(f"argument {written[1:]} should be a pointer, it is {describe(kind)}", pos)
        if written.isdigit():
            return args[int(written)]
        words = written.rstrip("* ")
        if words.startswith(("struct ", "union ")):
            tag, name = words.split()
            kind = self.types.struct(ctree.StructType(tag, name), self.path)
        else:
            kind = self.named_type(words)
        for _ in range(written.count("*")):
            kind = Ptr(kind)
        return kind

    def named_type(self, words: str) -> Type:
        """A basic type or typedef."""
        try:
            return basic(words)
        except Unmodelled:
            return self.resolve(ctree.TypeName(words, self.path))

    def nothing(self, expr: ctree.Call) -> Val:
        """A call that does nothing; its arguments are still evaluated for their effects."""
        self.effects_of(expr.args)
        return Val(VOID, NOTHING)

    def neutral(self, name: str, prototype: Func | None, expr: ctree.Call) -> Val:
        """A call that does nothing where a value is wanted: only void will do."""
        if prototype is not None and isinstance(prototype.returns, Void):
            return self.nothing(expr)
        row = f'[[function]]\nname = "{name}"\nwhat = "value=0"\nwhy = "..."'
        raise self.fail(f"the value of {name}() is used, but its rule only says that it is neutral", row)

    def effects_of(self, args: tuple[ctree.Expr, ...]) -> None:
        """Evaluate arguments whose values do not matter."""
        for arg in args:
            if has_effects(arg):
                self.effect(arg)

    def model_call(self, name: str, model: Model, prototype: Func | None, expr: ctree.Call) -> Val:
        """A call answered by Python."""
        written = tuple(
            ctree.Unary(arg.pos, "&", arg) if index in model.by_address else arg for index, arg in enumerate(expr.args)
        )
        values = self.evaluate(written)
        kinds = tuple(value.type for value in values)
        if prototype is not None:
            values = self.converted(values, prototype, expr.pos)
        site = None
        if model.site:
            bits = tuple(word_type(kind).bits for kind in kinds)
            pointee = tuple(
                word_type(kind.to).bits if isinstance(kind, Ptr) and isinstance(kind.to, Int | Ptr) else 0
                for kind in kinds
            )
            site = Site(expr.pos, self.function, tuple(text_of(arg) for arg in expr.args), bits, pointee)
        kind = self.result_type(model.returns, prototype, kinds, expr.pos)
        callee = self.names.model(name, model, site)
        return self.python_call(callee, tuple(value.ir for value in values), kind, expr.pos)

    def python_call(self, callee: str, args: tuple[Expr, ...], kind: Type, pos: Pos) -> Val:
        """Call Python, and convert what it returns."""
        if isinstance(kind, Void):
            self.add(Call(pos, None, callee, args))
            return Val(VOID, NOTHING)
        if isinstance(kind, Struct):
            raise Unmodelled("a model that returns a struct", pos)
        dest = self.local("", LONG, temporary=True)
        dest.low, dest.high = EXACT.low, EXACT.high
        self.add(Call(pos, dest.index, callee, args))
        return Val(kind, fold.convert(dest, word_type(kind)))

    # Arguments and results.

    def evaluate(self, args: tuple[ctree.Expr, ...]) -> list[Val]:
        """The arguments' values; GCC evaluates them from last to first."""
        done: list[tuple[Val, Mark]] = []
        for arg in reversed(args):
            value = self.rvalue(arg)
            done.append((value, self.mark()))
        values = []
        for value, mark in reversed(done):
            values.append(value._replace(ir=self.keep(value.ir, mark)))
        return values

    def converted(self, values: list[Val], kind: Func, pos: Pos) -> list[Val]:
        """Arguments as a prototype wants them; those it does not name are promoted."""
        params = kind.params
        made = []
        for number, value in enumerate(values):
            if number < len(params):
                made.append(self.convert(value, params[number], pos))
            elif isinstance(value.type, Int):
                made.append(self.convert(value, promote(value.type), pos))
            else:
                made.append(value)
        return made

    def arguments(self, kind: Func, args: tuple[ctree.Expr, ...], pos: Pos) -> tuple[Expr, ...]:
        """The arguments of a C function."""
        if len(args) < len(kind.params) or (len(args) > len(kind.params) and not kind.variadic and kind.params):
            raise Unmodelled(f"a call with {len(args)} arguments for {len(kind.params)} parameters", pos)
        return tuple(value.ir for value in self.converted(self.evaluate(args), kind, pos))

    def emit_call(self, callee: str | Expr, args: tuple[Expr, ...], returns: Type, pos: Pos, used: bool) -> Val:
        """Call a C function. A struct is returned into a place that the caller passes first."""
        if isinstance(returns, Void):
            self.add(Call(pos, None, callee, args))
            return Val(VOID, NOTHING)
        if isinstance(returns, Struct):
            into = Frame(self.on_stack(returns.body.size, returns.body.align))
            self.add(Call(pos, None, callee, (into, *args)))
            return Val(returns, into, Place(returns, None, into, align=8))
        dest = self.local("", returns, temporary=True)
        self.add(Call(pos, dest.index if used else None, callee, args))
        return Val(returns, dest)

    def pointer_call(self, function: Val, expr: ctree.Call, used: bool) -> Val:
        """Call through a function pointer."""
        kind = function.type.to if isinstance(function.type, Ptr) else function.type
        if not isinstance(kind, Func):
            raise Unmodelled(f"a call of a value of type {describe(function.type)}", expr.pos)
        if self.unevaluated:
            return Val(kind.returns, _unknown(kind.returns))
        mark = self.mark()
        args = self.arguments(kind, expr.args, expr.pos)
        return self.emit_call(self.keep(function.ir, mark), args, kind.returns, expr.pos, used)

    # Static calls and keys.

    def static_call(self, prefix: str, naming: ctree.Call, expr: ctree.Call, used: bool) -> Val:
        """`static_call(kvm_x86_foo)(args)`."""
        if len(naming.args) != 1 or not isinstance(naming.args[0], ctree.Name):
            raise Unmodelled("a static call that does not name its target", expr.pos)
        target = self.names.static_target(prefix + naming.args[0].name, expr.pos)
        if target is None:
            self.effects_of(expr.args)
            return Val(INT, Const(0, given=True))
        return self.named_call(target, expr, used)

    def static_key(self, expr: ctree.Call) -> Val:
        """Whether a static key is on; rules know."""
        name = root_name(expr.args[0]) if expr.args else ""
        on = self.names.rules.static_key(name)
        if on is None:
            row = f'[[static_key]]\nname = "{name}"\non = false\nwhy = "..."'
            raise self.fail(f"static key {name} is not known", row)
        return Val(BOOL, Const(int(on), given=True))

    # Builtins.

    def builtin(self, name: str, expr: ctree.Call) -> Val:
        """`__builtin_<name>(...)`."""
        args = expr.args
        if name == "constant_p":
            return Val(INT, Const(int(self.is_constant(args[0]))))
        if name in ("expect", "expect_with_probability"):
            return self.convert(self.rvalue(args[0]), LONG, expr.pos)
        if name == "choose_expr":
            return self.rvalue(args[1] if self.constant(args[0], self.path) else args[2])
        if name in BITS:
            return self.bit_builtin(name, expr)
        if name.removesuffix("_overflow") in ("add", "sub", "mul"):
            return self.overflow({"add": "+", "sub": "-", "mul": "*"}[name.removesuffix("_overflow")], expr)
        if name in MEMORY:
            return self.memory_call(name, expr)
        if name in ("object_size", "dynamic_object_size"):
            return Val(ULONG, Const(0 if self.constant(args[1], self.path) & 2 else ULONG.high, ULONG))
        if name in ("prefetch", "assume"):
            return Val(VOID, NOTHING)
        if name in ("unreachable", "trap"):
            raise self.fail(f"__builtin_{name}() is reached")
        raise Unmodelled(f"__builtin_{name}", expr.pos)

    def is_constant(self, expr: ctree.Expr) -> bool:
        """__builtin_constant_p at -O0: constants of the language, and string literals."""
        if isinstance(expr, ctree.Str):
            return True
        try:
            self.constant(expr, self.path)
        except Unmodelled:
            return False
        return True

    def bit_builtin(self, name: str, expr: ctree.Call) -> Val:
        """Counting and swapping of bits."""
        bits, kind = BITS[name]
        unsigned = basic(UNSIGNED_OF[bits])
        value = self.convert(self.rvalue(expr.args[0]), unsigned, expr.pos).ir
        result = unsigned if kind == "bswap" else INT
        if isinstance(value, Const) and not value.given and (value.value or kind in ("ffs", "popcount", "bswap")):
            found = BIT_FUNCTIONS[kind](value.value, bits)
            return Val(result, Const(found, word_type(result)))
        return self.python_call("C_" + kind, (value, Const(bits)), result, expr.pos)

    def overflow(self, op: str, expr: ctree.Call) -> Val:
        """__builtin_add_overflow(a, b, &result) and the like: exact arithmetic, then does it fit."""
        left, right, into = self.evaluate(expr.args)
        if not isinstance(left.type, Int) or not isinstance(right.type, Int):
            raise Unmodelled("overflow arithmetic on pointers", expr.pos)
        place = self.pointee(into, expr.pos)
        exact = self.temp(fold.binary(op, left.ir, right.ir, EXACT))
        kept = self.temp(fold.convert(exact, word_type(place.type)))
        self.store(place, Val(place.type, kept), expr.pos)
        return Val(BOOL, fold.compare("!=", exact, kept))

    def memory_call(self, name: str, expr: ctree.Call) -> Val:
        """memcpy, memset and the like."""
        values = self.evaluate(expr.args)
        kind: Type = {"memcmp": INT, "strlen": ULONG}.get(name, Ptr(VOID))
        words = [ULONG, ULONG, ULONG]
        args = tuple(self.convert(v, word, expr.pos).ir for v, word in zip(values, words, strict=False))
        return self.python_call("C_" + name, args, kind, expr.pos)

    # Macros with a meaning of their own, when the tree's definition is not expanded.

    def read_once(self, expr: ctree.Call) -> Val:
        """READ_ONCE(x)."""
        value = self.rvalue(expr.args[0])
        return value._replace(ir=self.temp(value.ir)) if value.ir.reads else value

    def write_once(self, expr: ctree.Call) -> Val:
        """WRITE_ONCE(x, value)."""
        return self.assign(ctree.Assign(expr.pos, "=", expr.args[0], expr.args[1]))

    def load_acquire(self, expr: ctree.Call) -> Val:
        """smp_load_acquire(p)."""
        return self.read_once(replace(expr, args=(ctree.Unary(expr.pos, "*", expr.args[0]),)))

    def store_release(self, expr: ctree.Call) -> Val:
        """smp_store_release(p, value)."""
        return self.assign(ctree.Assign(expr.pos, "=", ctree.Unary(expr.pos, "*", expr.args[0]), expr.args[1]))


INTRINSICS: dict[str, Callable[[Calls, ctree.Call], Val]] = {
    "READ_ONCE": Calls.read_once,
    "READ_ONCE_NOCHECK": Calls.read_once,
    "data_race": Calls.read_once,
    "WRITE_ONCE": Calls.write_once,
    "smp_store_mb": Calls.write_once,
    "smp_load_acquire": Calls.load_acquire,
    "smp_store_release": Calls.store_release,
}

BIT_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "ffs": lambda value, bits: (value & -value).bit_length(),
    "clz": lambda value, bits: bits - value.bit_length(),
    "ctz": lambda value, bits: (value & -value).bit_length() - 1,
    "popcount": lambda value, bits: value.bit_count(),
    "bswap": lambda value, bits: int.from_bytes(value.to_bytes(bits // 8, "little"), "big"),
}


def _unknown(kind: Type) -> Expr:
    """A value of which only the type matters."""
    word = word_type(kind)
    return Local(-1, word, word.low, word.high, False)


def root_name(expr: ctree.Expr) -> str:
    """The variable that an lvalue or address is rooted in, "" if there is none."""
    while True:
        match expr:
            case ctree.Name():
                return expr.name
            case ctree.Member() | ctree.Unary() | ctree.Cast() | ctree.Index():
                expr = expr.of
            case _:
                return ""


def has_effects(expr: ctree.Expr) -> bool:
    """Whether evaluating an expression may do something (calls, assignments, statements)."""
    match expr:
        case ctree.Call() | ctree.Assign() | ctree.Postfix() | ctree.StatementExpr():
            return True
        case ctree.Unary():
            return expr.op in ("++", "--") or has_effects(expr.of)
        case ctree.Binary():
            return has_effects(expr.left) or has_effects(expr.right)
        case ctree.Conditional():
            return any(has_effects(e) for e in (expr.cond, expr.then, expr.other) if e is not None)
        case ctree.Member() | ctree.Cast():
            return has_effects(expr.of)
        case ctree.Index():
            return has_effects(expr.of) or has_effects(expr.index)
    return False
