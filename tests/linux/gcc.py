"""The same C text run by gcc and by the program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from iretrace.linux.memory import STACKS
from iretrace.linux.program import Program, Run
from iretrace.linux.types import Int
from tests.linux import cgen
from tests.linux.csource import PATH, program_of

MASK = (1 << 64) - 1


def compiling(directory: Path, text: str, optimize: str) -> subprocess.Popen[str]:
    """gcc at work on a text. Skips the test where there is no gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    source = directory / "test.c"
    source.write_text(text)
    options = [optimize, "-fwrapv", "-fno-strict-aliasing", "-w", "-std=gnu11", "-o", str(directory / "test")]
    return subprocess.Popen([gcc, *options, str(source)], stderr=subprocess.PIPE, text=True)


def output(gcc: subprocess.Popen[str]) -> list[str]:
    """What the compiled program prints."""
    errors = gcc.communicate()[1]
    assert gcc.returncode == 0, errors[:3000]
    args = gcc.args
    assert isinstance(args, list)
    program = str(args[args.index("-o") + 1])
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def seed_bytes(count: int, x: int) -> tuple[bytes, int]:
    """The pseudo-random bytes of the harness."""
    made = bytearray()
    for _ in range(count):
        x = (x * 6364136223846793005 + 1442695040888963407) & MASK
        made.append(x >> 56)
    return bytes(made), x


class Ours:
    """The functions of a generated text, as the program runs them."""

    def __init__(self, text: str) -> None:
        self.program: Program = program_of(text)
        self.layout = self.program.layout
        self.struct = self.layout.struct_named("struct", "S")
        self.address = self.program.space.allocate("s", self.struct.body.size).address
        self.members = [self.layout.place(self.struct, member) for member in cgen.OBSERVED]
        self.flag, self.self_, self.sp, self.in_ = (
            self.layout.offset(self.struct, name) for name in ("flag", "self", "sp", "in")
        )

    def run(self, number: int, seed: int, small: bool) -> str:
        """What function `number` returns and leaves, as the harness prints it."""
        size = self.struct.body.size
        data, x = seed_bytes(size, seed)
        raw, _ = seed_bytes(32, x)
        args = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 32, 8)]
        image = bytearray(data)
        image[self.flag] &= 1
        image[self.self_ : self.self_ + 8] = self.address.to_bytes(8, "little")
        image[self.sp : self.sp + 8] = (self.address + self.in_).to_bytes(8, "little")
        words = {self.address + at: int.from_bytes(image[at : at + 8], "little") for at in range(0, size, 8)}
        if small:
            args = [signed(args[0], 8) & MASK, signed(args[1], 8) & MASK, args[2], args[3] & 0xFF]
        run = Run(self.program, words)
        result = run.call(
            f"f{number}", self.address, signed(args[0], 64), signed(args[1], 32), args[2] & 0xFF, args[3], path=PATH
        )
        assert not [a for a in run.m if a >= STACKS], "the stack is freed"
        return f"{result:x} {self.mix(run):x}"

    def mix(self, run: Run) -> int:
        """The struct's members, as the harness mixes them."""
        mix = 0
        whole = 0
        for at in range(0, self.struct.body.size, 8):
            whole |= run.m.get(self.address + at, 0) << 8 * at
        for bit, kind, width in self.members:
            assert isinstance(kind, Int)
            count = width or kind.bits
            value = whole >> bit & ((1 << count) - 1)
            mix = (mix * 31 + (signed(value, count) if kind.signed else value)) & MASK
        sp = whole >> 8 * self.sp & MASK
        return (mix * 31 + sp - self.address) & MASK


def signed(value: int, bits: int) -> int:
    """The low bits as a signed number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def compare(directory: Path, seed: int, count: int, optimize: str = "-O1", inputs: int = 2) -> int:
    """Run a generated text both ways. Returns how many statements and expressions it had."""
    text, functions, made = cgen.program(seed, count)
    gcc = compiling(directory, text + cgen.harness(functions, inputs), optimize)
    ours = Ours(text)
    found = [ours.run(n, n * inputs + k, bool(k & 1)) for n in range(functions) for k in range(inputs)]
    expected = output(gcc)
    wrong = [f"f{at // inputs}, input {at % inputs}" for at, line in enumerate(expected) if line != found[at]]
    assert len(expected) == len(found)
    assert not wrong, f"seed {seed}, {count} statements: {', '.join(wrong[:5])} differ from gcc {optimize}"
    return made
