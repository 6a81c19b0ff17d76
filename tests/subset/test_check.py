"""What the restricted Python accepts, and one test for each construct that it lacks."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from iretrace.subset import wrap16
from iretrace.subset.check import check, main

HEAD = '''"""A module of the subset."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from iretrace.subset import Array, record, rule, u1, u8, u16, u32, u64, wrap8, wrap16, wrap32, wrap64

SIZE = 16
MASK = (1 << 4) - 1


class Kind(IntEnum):
    """Kinds."""

    NONE = 0
    SOME = 3


@record
class Cpu:
    """State."""

    flag: u1
    byte: u8 = 1
    """A field."""
    word: u16 = SIZE
    wide: u64 = 0
    kind: Kind = Kind.NONE


@record
class Memory:
    words: Annotated[list[int], Array(16, SIZE)]
    top: u8

'''


def errors_of(tmp_path: Path, code: str) -> list[str]:
    """Errors of a sample module with this code after the head, without the path."""
    path = tmp_path / "sample.py"
    path.write_text(HEAD + code)
    return [error.split("sample.py:", 1)[1] for error in check([path])]


def body_errors(tmp_path: Path, body: str, result: str = "None") -> list[str]:
    """Errors of one function with this body."""
    indented = "\n".join("    " + line for line in body.splitlines())
    return errors_of(tmp_path, f"\ndef step(cpu: Cpu, mem: Memory, n: u8) -> {result}:\n{indented}\n")


SAMPLE = '''
@rule("APM vol. 2", "Nonmaskable Interrupts")
def due(cpu: Cpu) -> bool:
    """Chained comparison, a u1 as condition, and/or/not."""
    return cpu.flag and not (cpu.byte == 3 or 2 <= cpu.word < SIZE)


def fold(cpu: Cpu, mem: Memory, seed: u32) -> u32:
    total: u32 = seed if due(cpu) else 0
    for i in range(len(mem.words)):
        if mem.words[i] & MASK == Kind.SOME:
            continue
        total = wrap32(total * 31 + mem.words[i])
    for _again in range(2, 5):
        total ^= seed
        break
    return total


def settle(cpu: Cpu, mem: Memory) -> None:
    """A bounded loop, in-place updates, a local that takes its width from a call."""
    n: u8 = 0
    while n < SIZE and cpu.byte != 0:
        n = wrap8(n + 1)
        mem.words[wrap8(n - 1)] = wrap16(~cpu.word)
        cpu.byte = cpu.byte & ~1
    sum = fold(cpu, mem, 7)
    cpu.wide |= 1 << (sum & 63)
    cpu.kind = Kind.SOME
    cpu.flag = due(cpu)
    cpu.word = mem.words[0] // 2 % 7
'''


def test_a_module_within_the_subset_is_accepted(tmp_path: Path) -> None:
    assert errors_of(tmp_path, SAMPLE) == []


def test_the_accepted_module_runs_as_plain_python(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(HEAD + SAMPLE)
    names = runpy.run_path(str(path))
    cpu, memory = names["Cpu"](flag=1), names["Memory"](words=[5] * 16, top=0)
    names["settle"](cpu, memory)
    assert (memory.words[0], cpu.byte, cpu.kind) == (wrap16(~16), 0, 3)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("x = n + 1", "x has no declared width"),
        ("x = 3", "x has no declared width"),
        ("x: int = 3", "`int` has no width"),
        ("x: u8", "give it a value where it is declared"),
        ("x: u8 = 256", "x is u8, the value may be 256"),
        ("x: u8 = n\nx: u8 = 1", "x is declared twice"),
        ("if n == 1:\n    x: u8 = 1\ncpu.byte = x", "x is not assigned on every path"),
        ("SIZE: u8 = 1", "SIZE hides the global"),
        ("n = n + 1", "n is u8, the value may be 1..256; wrap8(...)"),
        ("n += 1", "n is u8, the value may be 1..256; wrap8(...)"),
        ("n = n - 1", "the value may be -1..254"),
        ("n = -n", "the value may be -255..0"),
        ("n = ~n", "the value may be -256..-1"),
        ("n = n * 2", "the value may be 0..510"),
        ("n = cpu.word", "n is u8, the value may be u16; wrap8(...)"),
        ("cpu.byte = n << 1", "cpu.byte is u8, the value may be 0..510"),
        ("cpu.flag = n", "cpu.flag is u1, the value may be u8"),
        ("cpu.kind = n", "cpu.kind is 0..3, the value may be u8"),
        ("mem.words[0] = cpu.wide", "mem.words[0] is u16, the value may be u64; wrap16(...)"),
        ("n = 1 >> n", "the shift count may be u8"),
        ("n = (n - 1) >> 1", "what is shifted must be no less than 0"),
        ("n = (n - 1) // 2", "division of -1..254"),
        ("n = n // n", "the divisor is at least 1"),
        ("n = n / 2", "Div is no operator"),
        ("n = n ** 2", "Pow is no operator"),
        ("n = +n", "unary + does nothing"),
        ("n = mem.words[n - 1]", "the index may be -1..254"),
        ("n = mem.words[SIZE]", "the index may be 16"),
        ("if cpu.wide + 1 > n - 1:\n    pass", "does not fit one 64-bit comparison"),
        ("if n:\n    pass", "`n` is no condition"),
        ("if cpu.wide and n == 1:\n    pass", "`cpu.wide` is no condition"),
        ("cpu.flag = not n", "`n` is no condition"),
        ("if n in (1, 2):\n    pass", "`in` needs a container"),
        ("if n is 1:\n    pass", "`in` needs a container, `is` an object"),
        ("if 0 < wrap8(n) < 3:\n    pass", "no call in the middle"),
        ("for i in range(n):\n    pass", "`n` is no constant"),
        ("for i in mem.words:\n    pass", "a for loop runs over range"),
        ("for i in range(3):\n    i = 2", "i counts a loop"),
        ("for i in range(3):\n    pass\nelse:\n    pass", "a for loop runs over range"),
        ("while n != 0:\n    n = wrap8(n - 1)", "a while loop shows its bound"),
        ("while True:\n    pass", "a while loop shows its bound"),
        ("while n < SIZE:\n    cpu.byte = 0\n    n = wrap8(n + 1)", "a while loop shows its bound"),
        ("while n < SIZE:\n    n = wrap8(n + 1)\n    n = 0", "n counts a loop"),
        ("while n < SIZE or cpu.flag:\n    n = wrap8(n + 1)", "a while loop shows its bound"),
        ("while n < 300:\n    n = wrap8(n + 1)", "a while loop shows its bound"),
        ("print(n)", "print(...) is no function of the subset"),
        ("cpu.pack()", "only functions of the subset, called by name"),
        ("x = cpu.nothing", "no field of a record"),
        ("n = len(cpu)", "len() is the length of an array"),
        ("x = mem.words", "x has no declared width"),
        ("mem.words = mem.words", "arrays are assigned element by element"),
        ("x = [1]", "a list is outside the subset"),
        ("x = {}", "a dictionary is outside the subset"),
        ("x, y = 1, 2", "a tuple is outside the subset"),
        ("x = y = n", "is outside the subset"),
        ("n = 1.5", "only integers, True and False are values"),
        ("n = 'a'", "only integers, True and False are values"),
        ("n = f'{n}'", "a string is outside the subset"),
        ("n = None", "only integers, True and False are values"),
        ("x = [i for i in range(3)]", "a comprehension is outside the subset"),
        ("x = lambda: 1", "a lambda is outside the subset"),
        ("def inner() -> None:\n    pass", "a function in a function"),
        ("class Inner:\n    pass", "a class in a function"),
        ("global n", "a global variable"),
        ("try:\n    pass\nexcept ValueError:\n    pass", "exception handling"),
        ("raise ValueError", "an exception"),
        ("assert n == 1", "an assertion"),
        ("with cpu:\n    pass", "a with statement"),
        ("del n", "del is outside the subset"),
        ("import os", "an import in a function"),
        ("match n:\n    case 1:\n        pass", "match (write if and elif)"),
        ("if (y := n) == 1:\n    pass", "an assignment in an expression"),
        ("yield n", "outside the subset"),
        ("return n", "step returns nothing"),
    ],
)
def test_a_construct_that_the_subset_lacks_is_refused(tmp_path: Path, statement: str, message: str) -> None:
    errors = body_errors(tmp_path, statement)
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os\n", "nothing that a module may have"),
        ("from os import path\n", "path of os is outside the subset"),
        ("from iretrace.subset import RULES\n", "RULES of iretrace.subset is outside the subset"),
        ("from iretrace.subset import wrap8 as w\n", "imported under another name"),
        ("state = 3\n", "a global is a constant and written in UPPER_CASE"),
        ("NAMES = [1]\n", "no constant integer"),
        ("WORD = 'a'\n", "no constant integer"),
        ("SIZE = 4\n", "SIZE is defined twice"),
        ("print(1)\n", "nothing that a module may have"),
        ("class Plain:\n    x: u8\n", "only @record classes"),
        ("@record\nclass Child(Cpu):\n    x: u8\n", "only @record classes"),
        ("@record\nclass R:\n    x: int\n", "`int` has no width"),
        ("@record\nclass R:\n    x: u8 = 256\n", "the default 256 does not fit u8"),
        ("@record\nclass R:\n    x: Cpu = 1\n", "has no default: the driver sets it"),
        ("@record\nclass R:\n    x: None\n", "or refers to a record"),
        ("@record\nclass R:\n    x: Annotated[list[int], Array(7, 2)]\n", "1, 8, 16, 32 or 64 bits"),
        ("@record\nclass R:\n    x: u8\n    def f(self) -> None:\n        pass\n", "only fields"),
        ("class E(IntEnum):\n    A = 'x'\n", "no constant integer"),
        ("def f(x) -> None:\n    pass\n", "no declared width"),
        ("def f(x: u8):\n    pass\n", "no declared width"),
        ("def f(x: str) -> None:\n    pass\n", "`str` has no width"),
        ("def f(x: u8 = 1) -> None:\n    pass\n", "no default arguments"),
        ("def f(*x: u8) -> None:\n    pass\n", "only plain positional parameters"),
        ("def f(*, x: u8) -> None:\n    pass\n", "only plain positional parameters"),
        ("@staticmethod\ndef f() -> None:\n    pass\n", "@rule(...) is the only decorator"),
        ("def f(x: u8) -> u8:\n    if x == 1:\n        return 1\n", "not every path returns a value"),
        ("def f(x: u8) -> u8:\n    return x + 1\n", "the result is u8, the value may be 1..256"),
        ("def f(x: u8) -> Cpu:\n    return x\n", "returns an integer, a bool or None"),
        ("def f(x: u8) -> None:\n    f(x)\n", "recursion: f -> f"),
        ("def f() -> None:\n    g()\ndef g() -> None:\n    f()\n", "recursion: f -> g -> f"),
        ("def f(x: u8) -> None:\n    f2(x)\n", "f2(...) is no function of the subset"),
        ("def f(g: u8) -> None:\n    g(1)\n", "g(...) is no function of the subset"),
        ("def g(x: u8) -> None:\n    pass\ndef f(x: u16) -> None:\n    g(x)\n", "g's x is u8, the value may be u16"),
        ("def g(x: u8) -> None:\n    pass\ndef f() -> None:\n    g(x=1)\n", "only plain positional arguments"),
        ("def g(x: u8) -> None:\n    pass\ndef f() -> None:\n    g()\n", "g takes 1 arguments, not 0"),
        ("def g(x: Cpu) -> None:\n    pass\ndef f(x: Memory) -> None:\n    g(x)\n", "a value of another type"),
        ("async def f() -> None:\n    pass\n", "nothing that a module may have"),
        ("for i in range(3):\n    pass\n", "nothing that a module may have"),
    ],
)
def test_a_declaration_that_the_subset_lacks_is_refused(tmp_path: Path, code: str, message: str) -> None:
    errors = errors_of(tmp_path, code)
    assert any(message in error for error in errors), errors


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text('"""Doc."""\n\nimport os\n')
    assert check([path]) == [f"{path}:3: `import os` is nothing that a module may have"]


def test_a_file_that_is_no_python_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def :\n")
    assert len(check([path])) == 1


def test_modules_that_import_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from b import f\n")
    (tmp_path / "b.py").write_text("from a import g\n")
    errors = check([tmp_path / "a.py", tmp_path / "b.py"])
    assert any("imports this module in turn" in error for error in errors)


def test_a_name_of_another_module_keeps_its_type(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from iretrace.subset import u8\n\ndef f(x: u8) -> None:\n    pass\n")
    (tmp_path / "b.py").write_text("from a import f\nBIG = 256\n\ndef g() -> None:\n    f(BIG)\n")
    (error,) = check([tmp_path / "b.py", tmp_path / "a.py"])
    assert "f's x is u8, the value may be 256" in error


def test_the_command_prints_errors_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import os\n")
    assert main([str(path)]) == 1
    assert "broken.py:1: " in capsys.readouterr().out
