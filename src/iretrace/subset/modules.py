"""What a module of the restricted Python declares: constants, records, enumerations, functions and their types."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from iretrace.subset.ranges import BOOL, WIDTHS, Range, Refused, binary, unary


class Wrong:
    """The type of what has been refused already, so that it is refused once."""


WRONG: Final = Wrong()


@dataclass(frozen=True, slots=True)
class ArrayType:
    """A fixed array: Annotated[list[int], Array(bits, length)]."""

    element: Range
    length: int


@dataclass(frozen=True, slots=True)
class RecordType:
    """A class made by @record: its fields and their types."""

    name: str
    fields: Mapping[str, Type]


@dataclass(frozen=True, slots=True)
class EnumType:
    """An IntEnum and its members."""

    name: str
    members: Mapping[str, int]

    @property
    def range(self) -> Range:
        """From the smallest member to the largest."""
        return Range(min(self.members.values()), max(self.members.values()))


Type = Range | ArrayType | RecordType | Wrong | None
"""Of a value; None is a function's that returns nothing."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the subset."""

    module: str
    name: str
    node: ast.FunctionDef
    params: tuple[tuple[str, Type], ...]
    result: Type


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """wrapN, record, rule, shared and Array: names of iretrace.subset that the checker knows by itself."""

    name: str


Entity = Range | Function | RecordType | EnumType | Intrinsic
"""What a module-level name stands for. A Range is a constant (of one value) or, as `u8`, a width."""

SUBSET_NAMES: dict[str, Entity] = {
    **{name: Intrinsic(name) for name in ("record", "rule", "shared", "Array", "wrap8", "wrap16", "wrap32", "wrap64")},
    **{name: Intrinsic(name) for name in WIDTHS},
}
IMPORTS: dict[str, dict[str, Entity]] = {
    "__future__": {"annotations": Intrinsic("annotations")},
    "typing": {"Annotated": Intrinsic("Annotated")},
    "enum": {"IntEnum": Intrinsic("IntEnum")},
    "iretrace.subset": SUBSET_NAMES,
}
"""Modules outside the subset, and what may be imported of them."""


@dataclass(slots=True)
class Module:
    """One checked module. names: what its global names stand for; errors: "path:line: message"."""

    name: str
    path: Path
    tree: ast.Module
    names: dict[str, Entity] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def refuse(self, node: ast.AST, message: str) -> Wrong:
        """Note an error at a node."""
        error = f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"
        if error not in self.errors:
            self.errors.append(error)
        return WRONG

    def constant(self, node: ast.expr) -> Range | Wrong:
        """The value of a constant expression, as a range of one."""
        match node:
            case ast.Constant(value=bool(value) | int(value)):
                return Range(int(value), int(value))
            case ast.Name(id=name):
                entity = self.names.get(name)
                if isinstance(entity, Range):
                    return entity
            case ast.Attribute(value=ast.Name(id=name), attr=member):
                entity = self.names.get(name)
                if isinstance(entity, EnumType) and member in entity.members:
                    return Range(entity.members[member], entity.members[member])
            case ast.UnaryOp(op=operator, operand=operand):
                inner = self.constant(operand)
                return inner if isinstance(inner, Wrong) else self._fold(node, operator, inner)
            case ast.BinOp(left=left, op=operator, right=right):
                first, second = self.constant(left), self.constant(right)
                if isinstance(first, Range) and isinstance(second, Range):
                    return self._fold(node, operator, first, second)
                return WRONG
        return self.refuse(node, f"`{ast.unparse(node)}` is no constant integer")

    def _fold(self, node: ast.expr, operator: ast.operator | ast.unaryop, *operands: Range) -> Range | Wrong:
        try:
            if isinstance(operator, ast.unaryop):
                return unary(operator, operands[0])
            return binary(operator, *operands)
        except Refused as error:
            return self.refuse(node, str(error))

    def type_of(self, annotation: ast.expr | None, where: ast.AST) -> Type:
        """The type that an annotation declares."""
        match annotation:
            case None:
                return self.refuse(where, "no declared width; annotate with u1, u8, u16, u32, u64, bool or a record")
            case ast.Constant(value=None):
                return None
            case ast.Name(id="bool"):
                return BOOL
            case ast.Name(id=name):
                entity = self.names.get(name)
                if isinstance(entity, Intrinsic) and entity.name in WIDTHS:
                    return WIDTHS[entity.name]
                if isinstance(entity, RecordType):
                    return entity
                if isinstance(entity, EnumType):
                    return entity.range
            case ast.Subscript(
                value=ast.Name(id="Annotated"),
                slice=ast.Tuple(
                    elts=[
                        ast.Subscript(value=ast.Name(id="list"), slice=ast.Name(id="int")),
                        ast.Call(func=ast.Name(id="Array"), args=[bits, length], keywords=[]),
                    ]
                ),
            ):
                return self._array(annotation, bits, length)
        return self.refuse(
            annotation, f"`{ast.unparse(annotation)}` has no width; use u1, u8, u16, u32, u64, bool or a record"
        )

    def _array(self, where: ast.AST, bits: ast.expr, length: ast.expr) -> Type:
        width, size = self.constant(bits), self.constant(length)
        if isinstance(width, Wrong) or isinstance(size, Wrong):
            return WRONG
        if f"u{width.lo}" not in WIDTHS or size.lo < 1:
            return self.refuse(where, f"Array({width}, {size}): 1, 8, 16, 32 or 64 bits, and at least one element")
        return ArrayType(WIDTHS[f"u{width.lo}"], size.lo)


def is_docstring(node: ast.stmt) -> bool:
    """A string standing alone: documentation of what is above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def declare(module: Module, others: Mapping[str, Module]) -> None:
    """Fill module.names and module.functions. others: the modules that it imports, declared before."""
    for node in module.tree.body:
        match node:
            case ast.ImportFrom():
                _declare_import(module, node, others)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                _declare_constant(module, node, name, module.constant(value))
            case ast.ClassDef():
                _declare_class(module, node)
            case ast.FunctionDef():
                _declare_function(module, node)
            case _ if not is_docstring(node):
                module.refuse(node, f"`{ast.unparse(node).splitlines()[0]}` is nothing that a module may have")


def _add(module: Module, node: ast.AST, name: str, entity: Entity) -> None:
    if name in module.names:
        module.refuse(node, f"{name} is defined twice")
    module.names[name] = entity


def _declare_import(module: Module, node: ast.ImportFrom, others: Mapping[str, Module]) -> None:
    source = node.module or ""
    known: Mapping[str, Entity] = others[source].names if source in others else IMPORTS.get(source, {})
    for alias in node.names:
        if alias.asname:
            module.refuse(node, f"{alias.name} is imported under another name; one name for one thing")
        elif alias.name in known:
            _add(module, node, alias.name, known[alias.name])
        else:
            module.refuse(node, f"{alias.name} of {source or '.'} is outside the subset")


def _declare_constant(module: Module, node: ast.AST, name: str, value: Range | Wrong) -> None:
    if name != name.upper():
        module.refuse(node, f"{name}: a global is a constant and written in UPPER_CASE")
    if isinstance(value, Range):
        _add(module, node, name, value)


def _declare_class(module: Module, node: ast.ClassDef) -> None:
    match node:
        case ast.ClassDef(bases=[ast.Name(id="IntEnum")], decorator_list=[], keywords=[]):
            _declare_enum(module, node)
        case ast.ClassDef(bases=[], decorator_list=[ast.Name(id="record")], keywords=[]):
            _declare_record(module, node)
        case _:
            module.refuse(node, f"class {node.name}: only @record classes and IntEnum without further bases")


def _declare_enum(module: Module, node: ast.ClassDef) -> None:
    members: dict[str, int] = {}
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                number = module.constant(value)
                if isinstance(number, Range):
                    members[name] = number.lo
            case _ if not is_docstring(statement):
                module.refuse(statement, f"enum {node.name}: only NAME = constant")
    if not members:
        module.refuse(node, f"enum {node.name} has no members")
        return
    _add(module, node, node.name, EnumType(node.name, members))


def _declare_record(module: Module, node: ast.ClassDef) -> None:
    fields: dict[str, Type] = {}
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=default):
                fields[name] = _field_type(module, statement, annotation, default)
            case _ if not is_docstring(statement):
                module.refuse(statement, f"record {node.name}: only fields, `name: width` or `name: width = constant`")
    _add(module, node, node.name, RecordType(node.name, fields))


def _field_type(module: Module, node: ast.AST, annotation: ast.expr, default: ast.expr | None) -> Type:
    declared = module.type_of(annotation, node)
    if declared is None:
        return module.refuse(node, "a field is an integer, an array of integers, or refers to a record")
    if isinstance(declared, RecordType) and default is not None:
        return module.refuse(node, "a field that refers to a record has no default: the driver sets it")
    if default is not None:
        value = module.constant(default)
        if isinstance(value, Range) and isinstance(declared, Range) and not value.within(declared):
            module.refuse(node, f"the default {value} does not fit {declared}")
        if isinstance(declared, ArrayType):
            module.refuse(node, "an array field has no default")
    return declared


def _declare_function(module: Module, node: ast.FunctionDef) -> None:
    arguments = node.args
    if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        module.refuse(node, f"{node.name}: only plain positional parameters")
    if arguments.defaults:
        module.refuse(node, f"{node.name}: no default arguments; say every argument at every call")
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="rule")):
                pass
            case _:
                module.refuse(decorator, f"{node.name}: @rule(...) is the only decorator")
    params = []
    for argument in arguments.args:
        declared = module.type_of(argument.annotation, argument)
        if isinstance(declared, ArrayType) or declared is None:
            declared = module.refuse(argument, f"{argument.arg}: pass the record that holds the array")
        params.append((argument.arg, declared))
    result = module.type_of(node.returns, node)
    if isinstance(result, ArrayType | RecordType):
        result = module.refuse(node, f"{node.name}: a function returns an integer, a bool or None")
    function = Function(module.name, node.name, node, tuple(params), result)
    _add(module, node, node.name, function)
    module.functions.append(function)
