"""Checks the body of one function of the restricted Python: statements, scopes, conditions, and where values fit."""

from __future__ import annotations

import ast
from itertools import pairwise

from iretrace.subset.modules import (
    WRONG,
    ArrayType,
    EnumType,
    Function,
    Intrinsic,
    Module,
    RecordType,
    Type,
    Wrong,
    is_docstring,
)
from iretrace.subset.ranges import BOOL, U64, WIDTHS, Range, Refused, binary, comparable, unary, union

NOT_IN_SUBSET: dict[type[ast.AST], str] = {
    ast.Lambda: "a lambda",
    ast.FunctionDef: "a function in a function",
    ast.ClassDef: "a class in a function",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a generator",
    ast.List: "a list",
    ast.Tuple: "a tuple",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.JoinedStr: "a string",
    ast.Try: "exception handling",
    ast.Raise: "an exception",
    ast.Assert: "an assertion (it raises an exception)",
    ast.With: "a with statement",
    ast.Global: "a global variable",
    ast.Nonlocal: "a closure",
    ast.Delete: "del",
    ast.Import: "an import in a function",
    ast.ImportFrom: "an import in a function",
    ast.Match: "match (write if and elif)",
    ast.NamedExpr: "an assignment in an expression",
    ast.Yield: "a generator",
    ast.YieldFrom: "a generator",
    ast.Await: "await",
}


def returns_always(body: list[ast.stmt]) -> bool:
    """Whether the end of the body cannot be reached."""
    match body[-1]:
        case ast.Return():
            return True
        case ast.If(body=then, orelse=otherwise) if otherwise:
            return returns_always(then) and returns_always(otherwise)
    return False


class Body:
    """Checks one function. calls: the functions that it calls, by (module, name), and where."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module = module
        self.function = function
        self.scopes: list[dict[str, Type]] = [dict(function.params)]
        self.fixed: set[str] = set()
        self.calls: dict[tuple[str, str], ast.AST] = {}

    def check(self) -> None:
        """Note every construct that the subset lacks in module.errors."""
        for name, _ in self.function.params:
            self._not_global(self.function.node, name)
        self._block(self.function.node.body)
        if self.function.result is not None and not returns_always(self.function.node.body):
            self._refuse(self.function.node, f"{self.function.name}: not every path returns a value")

    def _refuse(self, node: ast.AST, message: str) -> Wrong:
        return self.module.refuse(node, message)

    def _lookup(self, name: str) -> Type | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def _is_local(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def _not_global(self, node: ast.AST, name: str) -> None:
        if name in self.module.names:
            self._refuse(node, f"{name} hides the global of that name")

    # Statements.

    def _block(self, body: list[ast.stmt]) -> None:
        """A block of its own scope, as in C: a local lives where it is first assigned."""
        self.scopes.append({})
        for statement in body:
            self._statement(statement)
        self.scopes.pop()

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.AnnAssign():
                self._declaration(node)
            case ast.Assign(targets=[target], value=value):
                self._assign(node, target, value)
            case ast.AugAssign():
                self._aug_assign(node)
            case ast.If(test=test, body=then, orelse=otherwise):
                self._condition(test)
                self._block(then)
                self._block(otherwise)
            case ast.For():
                self._for(node)
            case ast.While():
                self._while(node)
            case ast.Return():
                self._return(node)
            case ast.Expr(value=ast.Call() as call):
                self._value(call)
            case ast.Pass() | ast.Break() | ast.Continue():
                pass
            case _ if not is_docstring(node):
                self._not_in_subset(node)

    def _not_in_subset(self, node: ast.AST) -> Wrong:
        what = NOT_IN_SUBSET.get(type(node), f"`{ast.unparse(node).splitlines()[0]}`")
        return self._refuse(node, f"{what} is outside the subset")

    def _declaration(self, node: ast.AnnAssign) -> None:
        declared = self.module.type_of(node.annotation, node)
        if not isinstance(node.target, ast.Name):
            self._refuse(node, "only a local is declared here; a field has its width from its record")
            return
        name = node.target.id
        self._not_global(node, name)
        if self._is_local(name):
            self._refuse(node, f"{name} is declared twice")
        if node.value is None:
            self._refuse(node, f"{name}: give it a value where it is declared")
        else:
            self._fits(node.value, self._value(node.value), declared, name)
        self.scopes[-1][name] = declared

    def _assign(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> None:
        given = self._value(value)
        if isinstance(target, ast.Name) and not self._is_local(target.id):
            self._not_global(node, target.id)
            if not isinstance(value, ast.Call | ast.Attribute | ast.Subscript) or isinstance(given, ArrayType):
                given = self._refuse(node, f"{target.id} has no declared width; write `{target.id}: u8 = ...`")
            self.scopes[-1][target.id] = given
            return
        self._fits(value, given, self._place(target), ast.unparse(target))

    def _aug_assign(self, node: ast.AugAssign) -> None:
        place, given = self._place(node.target), self._value(node.value)
        if isinstance(place, Range) and isinstance(given, Range):
            self._fits(node, self._binary(node, node.op, place, given), place, ast.unparse(node.target))

    def _place(self, target: ast.expr) -> Type:
        """The type of an assignment's left side."""
        if isinstance(target, ast.Name):
            if target.id in self.fixed:
                return self._refuse(target, f"{target.id} counts a loop and is not assigned to")
            return self._lookup(target.id)
        if isinstance(target, ast.Attribute | ast.Subscript):
            place = self._value(target)
            if isinstance(place, ArrayType):
                return self._refuse(target, "arrays are assigned element by element")
            if isinstance(place, RecordType):
                return self._refuse(target, "what a field refers to is set by the driver")
            return place
        return self._not_in_subset(target)

    def _fits(self, node: ast.AST, given: Type, wanted: Type, name: str) -> None:
        if isinstance(given, Wrong) or isinstance(wanted, Wrong):
            return
        if isinstance(given, Range) and isinstance(wanted, Range):
            if not given.within(wanted):
                wrap = next((f"; wrap{w[1:]}(...)" for w, r in WIDTHS.items() if r == wanted and w != "u1"), "")
                self._refuse(node, f"{name} is {wanted}, the value may be {given}{wrap}")
        elif given != wanted or given is None or isinstance(given, ArrayType):
            self._refuse(node, f"{name}: a value of another type")

    def _for(self, node: ast.For) -> None:
        match node:
            case ast.For(
                target=ast.Name(id=name),
                iter=ast.Call(func=ast.Name(id="range"), args=[*bounds], keywords=[]),
                orelse=[],
            ) if 1 <= len(bounds) <= 2:
                ends = [self._constant(bound) for bound in bounds]
                if all(isinstance(end, Range) for end in ends):
                    values = [end.lo for end in ends if isinstance(end, Range)]
                    first, last = (0, values[0]) if len(values) == 1 else (values[0], values[1])
                    self._loop(node, name, Range(first, max(first, last - 1)))
            case _:
                self._refuse(node, "a for loop runs over range(constant) or range(constant, constant)")

    def _loop(self, node: ast.For, name: str, values: Range) -> None:
        self._not_global(node, name)
        if self._is_local(name):
            self._refuse(node, f"{name} is declared twice")
        self.scopes.append({name: values})
        self.fixed.add(name)
        self._block(node.body)
        self.fixed.discard(name)
        self.scopes.pop()

    def _while(self, node: ast.While) -> None:
        """The one form whose bound can be read off: see docs/subset.md."""
        self._condition(node.test)
        bound = node.test.values[0] if isinstance(node.test, ast.BoolOp) else node.test
        form = (
            "`while n < LIMIT and ...:` with `n = wrap8(n + 1)` as first statement, and LIMIT no more than n can hold"
        )
        match bound, node.test, node.body[0], node.orelse:
            case (
                ast.Compare(left=ast.Name(id=name), ops=[ast.Lt()], comparators=[limit]),
                ast.Compare() | ast.BoolOp(op=ast.And()),
                ast.Assign(targets=[ast.Name(id=counted)], value=ast.Call(func=ast.Name(id=wrap), args=[step])),
                [],
            ) if counted == name and wrap.startswith("wrap") and ast.unparse(step) == f"{name} + 1":
                last, counter = self._constant(limit), self._lookup(name)
                if isinstance(last, Range) and isinstance(counter, Range) and not last.within(counter):
                    self._refuse(node, f"a while loop shows its bound: {form}")
                self._statement(node.body[0])
                self.fixed.add(name)
                if node.body[1:]:
                    self._block(node.body[1:])
                self.fixed.discard(name)
            case _:
                self._refuse(node, f"a while loop shows its bound: {form}")

    def _return(self, node: ast.Return) -> None:
        if node.value is None:
            if self.function.result is not None:
                self._refuse(node, f"{self.function.name} returns a value")
            return
        if self.function.result is None:
            self._refuse(node, f"{self.function.name} returns nothing")
        else:
            self._fits(node, self._value(node.value), self.function.result, "the result")

    # Expressions.

    def _condition(self, node: ast.expr) -> None:
        given = self._value(node)
        if isinstance(given, Wrong) or (isinstance(given, Range) and given.within(BOOL)):
            return
        self._refuse(node, f"`{ast.unparse(node)}` is no condition; a comparison, a bool or a u1 is (write `!= 0`)")

    def _integer(self, node: ast.expr) -> Range | Wrong:
        given = self._value(node)
        if isinstance(given, Range | Wrong):
            return given
        return self._refuse(node, f"`{ast.unparse(node)}` is no integer")

    def _constant(self, node: ast.expr) -> Range | Wrong:
        given = self._integer(node)
        if isinstance(given, Range) and not given.constant:
            return self._refuse(node, f"`{ast.unparse(node)}` is no constant")
        return given

    def _value(self, node: ast.expr) -> Type:
        match node:
            case ast.Constant(value=bool() | int()):
                return self.module.constant(node)
            case ast.Constant():
                return self._refuse(node, f"{ast.unparse(node)}: only integers, True and False are values")
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript():
                return self._element(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._condition(operand)
                return BOOL
            case ast.UnaryOp() | ast.BinOp():
                return self._arithmetic(node)
            case ast.BoolOp(values=values):
                for value in values:
                    self._condition(value)
                return BOOL
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                self._condition(test)
                first, second = self._integer(then), self._integer(otherwise)
                return union(first, second) if isinstance(first, Range) and isinstance(second, Range) else WRONG
            case ast.Call():
                return self._call(node)
        return self._not_in_subset(node)

    def _name(self, node: ast.Name) -> Type:
        if self._is_local(node.id):
            return self._lookup(node.id)
        entity = self.module.names.get(node.id)
        if isinstance(entity, Range):
            return entity
        if entity is not None:
            return self._refuse(node, f"{node.id} is no value")
        return self._refuse(node, f"{node.id} is not assigned on every path to this line, or nowhere")

    def _attribute(self, node: ast.Attribute) -> Type:
        if isinstance(node.value, ast.Name) and isinstance(self.module.names.get(node.value.id), EnumType):
            return self.module.constant(node)
        owner = self._value(node.value)
        if isinstance(owner, RecordType) and node.attr in owner.fields:
            return owner.fields[node.attr]
        if isinstance(owner, Wrong):
            return WRONG
        return self._refuse(node, f"`{ast.unparse(node)}` is no field of a record")

    def _element(self, node: ast.Subscript) -> Type:
        array, index = self._value(node.value), self._integer(node.slice)
        if isinstance(array, Wrong) or isinstance(index, Wrong):
            return WRONG
        if not isinstance(array, ArrayType):
            return self._refuse(node, f"`{ast.unparse(node.value)}` is no array")
        if not index.within(U64) or (index.constant and index.lo >= array.length):
            return self._refuse(node, f"the index may be {index}; an index is 0..{array.length - 1}")
        return array.element

    def _binary(self, node: ast.AST, operator: ast.operator, left: Range, right: Range) -> Range | Wrong:
        try:
            return binary(operator, left, right)
        except Refused as error:
            return self._refuse(node, str(error))

    def _arithmetic(self, node: ast.UnaryOp | ast.BinOp) -> Range | Wrong:
        if isinstance(node, ast.BinOp):
            left, right = self._integer(node.left), self._integer(node.right)
            if isinstance(left, Wrong) or isinstance(right, Wrong):
                return WRONG
            return self._binary(node, node.op, left, right)
        operand = self._integer(node.operand)
        try:
            return operand if isinstance(operand, Wrong) else unary(node.op, operand)
        except Refused as error:
            return self._refuse(node, str(error))

    def _compare(self, node: ast.Compare) -> Range:
        operands = [node.left, *node.comparators]
        for operator in node.ops:
            if isinstance(operator, ast.In | ast.NotIn | ast.Is | ast.IsNot):
                self._refuse(node, "only == != < <= > >= compare; `in` needs a container, `is` an object")
        if any(isinstance(inner, ast.Call) for middle in operands[1:-1] for inner in ast.walk(middle)):
            self._refuse(node, "no call in the middle of a chained comparison")
        values = [self._integer(operand) for operand in operands]
        for left, right in pairwise(values):
            if isinstance(left, Range) and isinstance(right, Range) and not comparable(left, right):
                self._refuse(node, f"{left} against {right} does not fit one 64-bit comparison; wrap one of them")
        return BOOL

    def _call(self, node: ast.Call) -> Type:
        if not isinstance(node.func, ast.Name):
            return self._refuse(node, f"`{ast.unparse(node.func)}(...)`: only functions of the subset, called by name")
        name = node.func.id
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            return self._refuse(node, f"{name}: only plain positional arguments")
        entity = self.module.names.get(name)
        if name == "len" and entity is None and len(node.args) == 1:
            array = self._value(node.args[0])
            if isinstance(array, ArrayType):
                return Range(array.length, array.length)
            return self._refuse(node, "len() is the length of an array")
        if isinstance(entity, Intrinsic) and entity.name.startswith("wrap") and len(node.args) == 1:
            return self._wrap(node, WIDTHS[f"u{entity.name[4:]}"])
        if isinstance(entity, Intrinsic) and entity.name == "shared" and len(node.args) == 4:
            return self._call_shared(node)
        if isinstance(entity, Function) and not self._is_local(name):
            return self._call_function(node, entity)
        return self._refuse(node, f"{name}(...) is no function of the subset")

    def _wrap(self, node: ast.Call, width: Range) -> Type:
        """Exact if the value fits anyway; else the low bits, which + - * << & | ^ ~ determine among themselves."""
        given = self._integer(node.args[0])
        if isinstance(given, Wrong) or given.within(width):
            return given
        return width

    def _call_shared(self, node: ast.Call) -> Type:
        thread, *numbers = [self._value(argument) for argument in node.args]
        if not isinstance(thread, RecordType | Wrong) or any(not isinstance(n, Range | Wrong) for n in numbers):
            return self._refuse(node, "shared(thread, cell, bits, how): a record and three integers")
        return None

    def _call_function(self, node: ast.Call, callee: Function) -> Type:
        self.calls.setdefault((callee.module, callee.name), node)
        values = [self._value(argument) for argument in node.args]
        if len(values) != len(callee.params):
            self._refuse(node, f"{callee.name} takes {len(callee.params)} arguments, not {len(values)}")
            return callee.result
        for argument, value, (name, wanted) in zip(node.args, values, callee.params, strict=True):
            self._fits(argument, value, wanted, f"{callee.name}'s {name}")
        return callee.result
