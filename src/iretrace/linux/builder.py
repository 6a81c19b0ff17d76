"""Making basic blocks: the current block, temporaries, stack variables, leaf conditions.

Expressions are pure until an operation is added; `keep` saves the value of an earlier one when a later one had effects,
so that the order of evaluation is that of the source, left to right.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from iretrace.linux import ctree
from iretrace.linux.answers import ConditionId, Model, Rules, Site
from iretrace.linux.ctree import Pos
from iretrace.linux.ir import (
    Block,
    Branch,
    Const,
    Expr,
    Fail,
    Jump,
    Local,
    Op,
    Set,
    Unreachable,
)
from iretrace.linux.memory import STACK_SIZE
from iretrace.linux.resolve import Types
from iretrace.linux.types import BOOL, ULONG, Func, Int, Ptr, Type, round_up
from iretrace.linux.unmodelled import Unmodelled


class Variable(NamedTuple):
    """What a name stands for: exactly one of the numbers is set.

    local: a local of the function; offset: in its stack frame; address: in memory; value: a constant.
    """

    type: Type
    local: int | None = None
    offset: int | None = None
    address: int | None = None
    value: int | None = None
    given: bool = False


class Callee(NamedTuple):
    """A function that can be called by name: its name in the program, and its type."""

    name: str
    type: Func


class Names(Protocol):
    """What the lowering knows of the world outside the function. Every method raises Unmodelled if nobody answers."""

    @property
    def types(self) -> Types:
        """The types."""
        ...

    @property
    def rules(self) -> Rules:
        """The rules."""
        ...

    @property
    def negated(self) -> ConditionId | None:
        """The condition to negate."""
        ...

    def identifier(self, name: str, pos: Pos, unevaluated: bool) -> Variable:
        """A name at file scope: enumeration constant, function, global. unevaluated: only the type is wanted."""
        ...

    def callee(self, name: str, pos: Pos) -> Callee:
        """A function to call from source."""
        ...

    def prototype(self, name: str, pos: Pos) -> Func | None:
        """The type of a function, defined or only declared; None for macros and unknown names."""
        ...

    def model(self, name: str, answer: Model, site: Site | None) -> str:
        """The name in the program of the Python that answers for a function, bound to the site if it wants one."""
        ...

    def static_target(self, name: str, pos: Pos) -> str | None:
        """The function that a static call goes to; None for an optional one that is not there."""
        ...

    def string(self, text: str) -> int:
        """The address of a string literal."""
        ...

    def static_local(self, function: str, declaration: ctree.Declaration, kind: Type) -> int:
        """The address of a function's static variable."""
        ...


class Mark(NamedTuple):
    """A point in the making of blocks: what comes after it can be inspected, and something put there."""

    block: Block
    at: int
    effects: int


class Dead(Exception):
    """The rest of the statement cannot be reached."""


class Builder:
    """Blocks of one function."""

    def __init__(self, names: Names, path: str, function: str) -> None:
        self.names = names
        self.types = names.types
        self.path = path
        self.function = function
        self.guesses = f"{function}()" in names.rules.shared
        """Whether what a pointer points to may be shared, which only a run can tell."""
        self.variables: list[str] = []
        self.conditions: list[tuple[str, int, int]] = []
        self.stack = 0
        self.pos = Pos(path, 0)
        self.effects = 0
        self.blocks = 0
        self.reached: set[Block] = set()
        self.block = self.new_block()
        self._ordinals: dict[tuple[str, int], int] = {}

    # Blocks.

    def new_block(self) -> Block:
        """An empty block; blocks are numbered within the function."""
        self.blocks += 1
        return Block(self.blocks - 1)

    @property
    def dead(self) -> bool:
        """Whether the current block has ended: what follows cannot be reached."""
        return self.block.end is not None

    def add(self, op: Op) -> None:
        """Append an operation that other code may notice."""
        self.effects += 1
        if self.block.end is None:
            self.block.ops.append(op)

    def jump(self, to: Block) -> None:
        """End the current block, if it has not ended."""
        if self.block.end is None:
            self.block.end = Jump(to)
            self.reached.add(to)

    def branch(self, cond: Expr, then: Block, other: Block, pos: Pos) -> None:
        """End the current block by a leaf condition."""
        if self.block.end is not None:
            return
        if isinstance(cond, Const) and not cond.given:
            self.jump(then if cond.value else other)
            return
        if self.condition(self.block, pos):
            then, other = other, then
        self.block.end = Branch(cond, then, other)
        self.reached.update((then, other))

    def condition(self, block: Block, pos: Pos) -> bool:
        """Note a leaf condition that is decided in `block`. Returns whether it is the one to negate."""
        ordinal = self._ordinals.get((pos.path, pos.line), 0)
        self._ordinals[pos.path, pos.line] = ordinal + 1
        block.conditions.append(len(self.conditions))
        self.conditions.append((pos.path, pos.line, ordinal))
        return self.names.negated == ConditionId(pos.path, pos.line, ordinal, self.function)

    def fail(self, what: str, row: str = "") -> Dead:
        """End the current block by an error. Returns the exception that abandons the rest of the statement."""
        if self.block.end is None:
            self.block.ops.append(Fail(self.pos, what, row))
            self.block.end = Unreachable()
        return Dead()

    # Values.

    def local(self, name: str, kind: Type, temporary: bool = False) -> Local:
        """A new variable of the function, held in a Python variable."""
        self.variables.append(name)
        return local_of(len(self.variables) - 1, kind, temporary)

    def temp(self, value: Expr) -> Local:
        """The value now, in a temporary."""
        temp = Local(len(self.variables), value.type, value.low, value.high, True)
        self.variables.append("")
        if self.block.end is None:
            self.block.ops.append(Set(self.pos, temp.index, value))
        return temp

    def on_stack(self, size: int, align: int) -> int:
        """Room in the stack frame: its offset."""
        offset = round_up(self.stack, max(align, 8))
        self.stack = offset + round_up(max(size, 1), 8)
        if self.stack > STACK_SIZE:
            raise Unmodelled(f"a stack frame of {self.stack} bytes", self.pos)
        return offset

    def mark(self) -> Mark:
        """Where we are."""
        return Mark(self.block, len(self.block.ops), self.effects)

    def keep(self, value: Expr, mark: Mark) -> Expr:
        """A value that was computed at `mark`, safe from effects since then."""
        if not value.reads or mark.effects == self.effects:
            return value
        temp = Local(len(self.variables), value.type, value.low, value.high, True)
        self.variables.append("")
        mark.block.ops.insert(mark.at, Set(self.pos, temp.index, value))
        return temp


def word_type(kind: Type) -> Int:
    """The integer type that represents a scalar: pointers and addresses of structs are unsigned long."""
    return kind if isinstance(kind, Int) else ULONG


def local_of(index: int, kind: Type, temporary: bool) -> Local:
    """A reference to a local."""
    word = word_type(kind)
    high = 1 if word is BOOL else word.high
    return Local(index, word, word.low, high, temporary)


def is_scalar(kind: Type) -> bool:
    """Integers and pointers."""
    return isinstance(kind, Int | Ptr)
