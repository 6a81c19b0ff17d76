"""Lowering of a function: its statements become basic blocks.

What nobody answers (an unknown type, function or construct) becomes an operation that raises Unmodelled when it is
reached: a function may contain what it does not execute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from iretrace.linux import ctree
from iretrace.linux.answers import Model
from iretrace.linux.builder import Dead, Names, Variable, is_scalar, local_of
from iretrace.linux.cleanup import Alive, Cleanup, alive_at_labels
from iretrace.linux.ctree import Pos
from iretrace.linux.initializers import Initializers
from iretrace.linux.ir import Block, Choose, Copy, Expr, Frame, Jump, Lowered, Mark, Return, Unreachable
from iretrace.linux.places import NOTHING, Place, Val
from iretrace.linux.types import INT, VOID, Array, Int, Ptr, Struct, Type, Void, describe, promote
from iretrace.linux.unmodelled import Unmodelled
from iretrace.linux.walk import nodes

T = TypeVar("T")


@dataclass(slots=True)
class SwitchContext:
    """A switch being lowered: its labels so far."""

    type: Int
    arms: list[tuple[int, int, Block, Pos]]
    cleanups: int
    default: tuple[Block, Pos] | None = None


class FunctionLowering(Initializers):
    """Statements and whole functions."""

    def __init__(self, names: Names, path: str, function: str) -> None:
        super().__init__(names, path, function)
        self.scopes = []
        self.returns: Type = VOID
        self.result: int | None = None
        self.in_memory: frozenset[str] = frozenset()
        self.labels: dict[str, Block] = {}
        self.breaks: list[tuple[Block, int]] = []
        self.continues: list[tuple[Block, int]] = []
        """Where break and continue lead, and how many cleanups remain due there."""
        self.cleanups: list[Cleanup] = []
        self.alive_at: dict[str, Alive] = {}
        self.switches: list[SwitchContext] = []

    # Functions.

    def function_body(self, function: ctree.Function) -> Lowered:
        """The function, lowered. Raises Unmodelled when its own type cannot be understood."""
        self.pos = function.pos
        self.in_memory = frozenset(addressed(function.body, self))
        self.alive_at = alive_at_labels(function.body)
        self.scopes.append({})
        entry = self.block
        self.returns = self.resolve(function.type.returns)
        if isinstance(self.returns, Struct):
            self.result = self.local("", Ptr(self.returns)).index
        params = [p for p in function.type.params if p.type != ctree.Basic("void")]
        incoming = [(p.name, self.parameter_type(p)) for p in params]
        locals_ = [self.local(name, Ptr(kind) if isinstance(kind, Struct) else kind) for name, kind in incoming]
        count = len(self.variables)
        for (name, kind), local in zip(incoming, locals_, strict=True):
            if isinstance(kind, Struct) or name in self.in_memory:
                variable = self.variable_on_stack(name, kind)
                place = Place(kind, None, Frame(variable.offset or 0), align=16)
                self.store(place, Val(kind, local), function.pos)
            else:
                self.scopes[-1][name] = Variable(kind, local=local.index)
        self.statement(function.body)
        self.pos = Pos(function.pos.path, function.last_line)
        if self.block.end is None:
            self.block.end = Return(self.pos, None if isinstance(self.returns, Void | Struct) else NOTHING)
        return Lowered(function.name, function.pos, count, self.variables, entry, self.stack, self.conditions)

    def parameter_type(self, param: ctree.Param) -> Type:
        """The type of a parameter: arrays and functions are pointers."""
        if isinstance(param.type, ctree.ArrayType):
            return Ptr(self.resolve(param.type.of))
        if isinstance(param.type, ctree.FunctionType):
            return Ptr(self.resolve(param.type))
        kind = self.resolve(param.type)
        return Ptr(kind.of) if isinstance(kind, Array) else kind

    def variable_on_stack(self, name: str, kind: Type) -> Variable:
        """Declare a variable that needs an address."""
        variable = Variable(kind, offset=self.on_stack(self.types.size_of(kind), self.types.align_of(kind)))
        self.scopes[-1][name] = variable
        return variable

    def dry(self, lower: Callable[[], T]) -> T:
        """Lower something and forget what was made."""
        before = (self.block, self.stack, self.effects, len(self.conditions), len(self.scopes), self.blocks)
        variables, cleanups = len(self.variables), len(self.cleanups)
        ordinals, labels = self._ordinals, dict(self.labels)
        self._ordinals = {}
        self.unevaluated += 1
        self.block = self.new_block()
        try:
            return lower()
        except Dead:
            raise Unmodelled("an expression of unknown type", self.pos) from None
        finally:
            self.unevaluated -= 1
            self._ordinals, self.labels = ordinals, labels
            self.block, self.stack, self.effects, conditions, scopes, self.blocks = before
            del self.conditions[conditions:], self.scopes[scopes:], self.variables[variables:], self.cleanups[cleanups:]

    # Statements.

    def start(self, pos: Pos) -> None:
        """A C statement starts here."""
        self.pos = pos
        if self.block.end is None:
            self.block.ops.append(Mark(pos))

    def statement(self, node: ctree.Statement) -> None:
        """One statement."""
        if self.dead and not has_label(node):
            return
        match node:
            case ctree.Block():
                outer = self.open_scope()
                for item in node.items:
                    self.statement(item)
                self.close_scope(outer)
            case ctree.ExprStatement():
                self.start(node.pos)
                with self.reporting():
                    self.effect(node.expr)
            case ctree.Declaration():
                with self.reporting():
                    self.declaration(node)
            case ctree.If():
                self.if_(node)
            case ctree.While():
                self.while_(node)
            case ctree.For():
                self.for_(node)
            case ctree.Switch():
                self.switch(node)
            case ctree.Case():
                self.case(node)
            case ctree.Label():
                block = self.labels.setdefault(node.name, self.new_block())
                self.jump(block)
                self.block = block
                self.statement(node.body)
            case ctree.Return():
                self.return_(node)
            case ctree.Goto() | ctree.Break() | ctree.Continue():
                self.start(node.pos)
                self.leave(node)
            case ctree.Asm():
                self.start(node.pos)
                row = f'[[function]]\nname = "{self.function}"\nwhat = "model=..."\nwhy = "..."'
                self.fail(f"inline assembly in {self.function}()", row)
            case ctree.Empty():
                pass

    def leave(self, node: ctree.Goto | ctree.Break | ctree.Continue) -> None:
        """goto, break, continue."""
        if isinstance(node, ctree.Goto):
            with self.reporting():
                self.clean_up(self.due_at(node))
                self.jump(self.labels.setdefault(node.label, self.new_block()))
            return
        to, due = self.breaks[-1] if isinstance(node, ctree.Break) else self.continues[-1]
        self.clean_up(due)
        self.jump(to)

    # Scopes and cleanups.

    def open_scope(self) -> int:
        """Begin a scope; the number of cleanups that are due outside of it, for close_scope()."""
        self.scopes.append({})
        return len(self.cleanups)

    def close_scope(self, outer: int) -> None:
        """End a scope, with what its variables have to be cleaned up with if control gets here."""
        self.clean_up(outer)
        del self.cleanups[outer:]
        self.scopes.pop()

    def clean_up(self, due: int) -> None:
        """Run all cleanups but the first `due`, the last declared first. They stay due for other ways out."""
        scopes = self.scopes
        for cleanup in reversed(self.cleanups[due:]):
            if self.dead:
                break
            self.start(cleanup.variable.pos)
            self.scopes = scopes[: cleanup.depth]
            with self.reporting():
                self.effect(cleanup.call)
        self.scopes = scopes

    def due_at(self, goto: ctree.Goto) -> int:
        """How many of the cleanups due here are due at the label as well. Raises Unmodelled if it has others."""
        here = [cleanup.variable for cleanup in self.cleanups]
        there = self.alive_at.get(goto.label, ())
        if len(there) > len(here) or any(mine is not its for mine, its in zip(here, there, strict=False)):
            raise Unmodelled(f"goto {goto.label} into the scope of a variable with a cleanup", goto.pos)
        return len(there)

    def return_(self, node: ctree.Return) -> None:
        """return."""
        self.start(node.pos)
        with self.reporting():
            value = None
            if node.value is not None and isinstance(self.returns, Void):
                self.effect(node.value)
            elif node.value is not None:
                result = self.convert(self.rvalue(node.value), self.returns, node.pos)
                if isinstance(self.returns, Struct):
                    assert self.result is not None
                    into = local_of(self.result, Ptr(VOID), temporary=False)
                    self.add(Copy(node.pos, into, result.ir, self.returns.body.size))
                else:
                    value = result.ir
            elif is_scalar(self.returns):
                value = NOTHING
            if self.cleanups:
                value = value if value is None or value is NOTHING else self.temp(value)
                self.clean_up(0)
            if self.block.end is None:
                self.block.end = Return(node.pos, value)

    def declaration(self, node: ctree.Declaration) -> None:
        """A local variable."""
        if node.storage == "extern":
            return
        kind = self.resolve(node.type)
        if node.init is not None:
            kind = self.completed(kind, node.init)
        if node.storage == "static":
            address = self.names.static_local(self.function, node, kind)
            self.scopes[-1][node.name] = Variable(kind, address=address)
            return
        if isinstance(kind, Void):
            raise Unmodelled(f"variable {node.name} of type {describe(kind)}", node.pos)
        if node.init is not None:
            self.start(node.pos)
        if is_scalar(kind) and node.name not in self.in_memory:
            local = self.local(node.name, kind)
            self.scopes[-1][node.name] = Variable(kind, local=local.index)
            place = Place(kind, local.index, NOTHING)
        else:
            variable = self.variable_on_stack(node.name, kind)
            place = Place(kind, None, Frame(variable.offset or 0), align=16)
        if node.init is not None:
            self.initialize(place, node.init, node.pos)
        if node.cleanup is not None:
            self.cleanups.append(Cleanup(node, node.cleanup, len(self.scopes)))

    # Control flow.

    def if_(self, node: ctree.If) -> None:
        """if / else."""
        self.start(node.pos)
        then, other = self.new_block(), self.new_block()
        end = other if node.other is None else self.new_block()
        self.test(node.cond, then, other)
        self.arm_of_if(node.then, then, end)
        if node.other is not None:
            self.arm_of_if(node.other, other, end)
        self.enter(end)

    def arm_of_if(self, body: ctree.Statement, block: Block, end: Block) -> None:
        """One side of an if."""
        self.enter(block)
        self.statement(body)
        self.jump(end)

    def loop(self, body: ctree.Statement, after: Block, end: Block) -> None:
        """A loop's body; `after` is where continue leads."""
        self.breaks.append((end, len(self.cleanups)))
        self.continues.append((after, len(self.cleanups)))
        self.statement(body)
        self.breaks.pop()
        self.continues.pop()
        self.jump(after)

    def while_(self, node: ctree.While) -> None:
        """while, do while."""
        head, body, end = self.new_block(), self.new_block(), self.new_block()
        self.jump(body if node.do_first else head)
        if not node.do_first:
            self.block = head
            self.start(node.pos)
            self.test(node.cond, body, end)
            self.enter(body)
        else:
            self.block = body
        self.loop(node.body, head, end)
        if node.do_first:
            self.enter(head)
            if not self.dead:
                if not isinstance(node.cond, ctree.Num):
                    self.start(node.cond.pos)
                self.test(node.cond, body, end)
        self.enter(end)

    def for_(self, node: ctree.For) -> None:
        """for."""
        outer = self.open_scope()
        for item in node.init:
            self.statement(item)
        head, body, after, end = self.new_block(), self.new_block(), self.new_block(), self.new_block()
        self.jump(head)
        self.block = head
        if node.cond is None:
            self.jump(body)
        else:
            self.start(node.cond.pos)
            self.test(node.cond, body, end)
        self.enter(body)
        self.loop(node.body, after, end)
        self.enter(after)
        if node.step is not None and not self.dead:
            self.start(node.step.pos)
            with self.reporting():
                self.effect(node.step)
        self.jump(head)
        self.enter(end)
        self.close_scope(outer)

    def switch(self, node: ctree.Switch) -> None:
        """switch."""
        self.start(node.pos)
        context = SwitchContext(INT, [], len(self.cleanups))
        value: Expr = NOTHING
        with self.reporting():
            lowered = self.rvalue(node.value)
            if not isinstance(lowered.type, Int):
                raise Unmodelled(f"switch on {describe(lowered.type)}", node.pos)
            context.type = promote(lowered.type)
            value = self.convert(lowered, context.type, node.pos).ir
        head, end = self.block, self.new_block()
        self.block = self.new_block()
        self.block.end = Unreachable()
        self.switches.append(context)
        self.breaks.append((end, len(self.cleanups)))
        self.statement(node.body)
        self.switches.pop()
        self.breaks.pop()
        self.jump(end)
        if head.end is None:
            head.end = self.choose(value, context, end, node.pos)
        self.enter(end)

    def choose(self, value: Expr, context: SwitchContext, end: Block, pos: Pos) -> Choose:
        """The jump of a switch. Each label is a leaf condition, decided on the edge that leads to it."""
        arms: list[tuple[int, int, Block]] = []
        first = context.arms[0][2] if context.arms else end
        for low, high, target, at in context.arms:
            edge = Block(self.new_block().id, end=Jump(target))
            self.reached.add(target)
            if not self.condition(edge, at):
                arms.append((low, high, edge))
        target, at = context.default or (end, pos)
        default = self.new_block()
        target = first if self.condition(default, at) else target
        default.end = Jump(target)
        self.reached.add(target)
        return Choose(value, arms, default)

    def case(self, node: ctree.Case) -> None:
        """A case or default label."""
        context = self.switches[-1]
        block = self.new_block()
        self.jump(block)
        self.block = block
        if node.low is None:
            context.default = (block, node.pos)
        else:
            with self.reporting():
                low = context.type.wrap(self.constant(node.low, self.path))
                high = low if node.high is None else context.type.wrap(self.constant(node.high, self.path))
                context.arms.append((low, high, block, node.pos))
        if len(self.cleanups) != context.cleanups:
            self.fail("a case label in the scope of a variable with a cleanup")
        self.statement(node.body)

    def statement_expr(self, expr: ctree.StatementExpr, used: bool) -> Val:
        """`({ ... })`: the value is that of the last statement, if it is an expression."""
        items = expr.body.items
        outer = self.open_scope()
        value = Val(VOID, NOTHING)
        for number, item in enumerate(items):
            if number == len(items) - 1 and isinstance(item, ctree.ExprStatement):
                self.start(item.pos)
                if used:
                    value = self.rvalue(item.expr)
                    if value.ir.reads or (len(self.cleanups) > outer and value.ir is not NOTHING):
                        value = value._replace(ir=self.temp(value.ir))
                else:
                    self.effect(item.expr)
            else:
                self.statement(item)
        self.close_scope(outer)
        if isinstance(value.type, Array):
            raise Unmodelled("an array as the value of a statement expression", expr.pos)
        return value


def addressed(body: ctree.Block, lowering: FunctionLowering) -> Iterator[str]:
    """The names of variables whose address is taken."""
    for node in nodes(body):
        if isinstance(node, ctree.Unary):
            if node.op == "&":
                yield _direct_root(node.of)
        elif isinstance(node, ctree.Call) and isinstance(node.function, ctree.Name):
            answer = lowering.names.rules.function(node.function.name, lowering.path)
            if isinstance(answer, Model):
                for number in answer.by_address:
                    yield _direct_root(node.args[number])


def _direct_root(expr: ctree.Expr) -> str:
    """The variable of which an lvalue is a part, without going through pointers; "" if none."""
    while True:
        match expr:
            case ctree.Name():
                return expr.name
            case ctree.Member(arrow=False) | ctree.Index():
                expr = expr.of
            case _:
                return ""


def has_label(node: ctree.Statement) -> bool:
    """Whether control can enter a statement from elsewhere."""
    match node:
        case ctree.Label() | ctree.Case():
            return True
        case ctree.Block():
            return any(has_label(item) for item in node.items)
        case ctree.If():
            return has_label(node.then) or (node.other is not None and has_label(node.other))
        case ctree.While() | ctree.For() | ctree.Switch():
            return has_label(node.body)
    return False
