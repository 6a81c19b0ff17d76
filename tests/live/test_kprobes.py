"""Where a probe goes is found in a module, or it is not tried."""

from __future__ import annotations

from pathlib import Path

from iretrace.live.kprobes import behind_init_bit, find_behind_init_bit

TOLD = """\
kvm.ko:     file format elf64-x86-64

0000000000047390 <__apic_accept_irq>:
   47390:	call   47395 <__apic_accept_irq+0x5>
   474ff:	movq   $0x1,0xe0(%rbp)
   4750a:	lock orb $0x40,0x39(%r13)
   47510:	mov    %r13,%rdi
"""


def test_a_probe_goes_to_the_instruction_behind_the_bit() -> None:
    assert find_behind_init_bit(TOLD) == "__apic_accept_irq+0x17a"


def test_what_is_not_certain_is_not_told() -> None:
    assert find_behind_init_bit(TOLD.replace("$0x1", "$0x3")) == "", "no such instruction"
    assert find_behind_init_bit(TOLD + "   47520:	movq   $0x1,0x8(%rax)\n") == "", "two of them"
    assert find_behind_init_bit("") == ""


def test_what_is_no_module_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "kvm.ko").write_bytes(b"kvm")
    assert behind_init_bit(tmp_path / "kvm.ko") == ""
