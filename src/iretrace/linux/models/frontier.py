"""KVM's frontier: the MMU, the instruction emulator, guest memory, the GHCB page, CPUID."""

from __future__ import annotations

from iretrace.linux import memory
from iretrace.linux.models.run import KvmRun, store_bits
from iretrace.linux.unmodelled import Unmodelled

EMULTYPE_TRAP_UD = 1 << 1
EMULTYPE_SKIP = 1 << 2
EMULTYPE_COMPLETE_USER_EXIT = 1 << 7
"""What the emulator is asked for (arch/x86/include/asm/kvm_host.h)."""

UD_VECTOR = 6
X86_EFLAGS_RF = 1 << 16


def map_page(run: KvmRun, *_: int) -> int:
    """kvm_mmu_page_fault(): the page is mapped, the guest retries (RET_PF_RETRY)."""
    run.warm = True
    return 1


def emulate_instruction(run: KvmRun, vcpu: int, emulation_type: int) -> int:
    """kvm_emulate_instruction(): x86_emulate_instruction() as far as it goes for an instruction that is skipped, and
    for one that the emulator does not know after #UD. Every instruction has length 1."""
    if emulation_type & EMULTYPE_COMPLETE_USER_EXIT or not emulation_type & (EMULTYPE_SKIP | EMULTYPE_TRAP_UD):
        raise Unmodelled(f"kvm_emulate_instruction() with emulation type {emulation_type:#x}")
    run.call("kvm_clear_exception_queue", vcpu)
    if emulation_type & EMULTYPE_TRAP_UD:
        run.call("kvm_queue_exception", vcpu, UD_VECTOR)
        return 1
    run.call("kvm_rip_write", vcpu, run.call("kvm_rip_read", vcpu) + 1)
    rflags = run.call("kvm_get_rflags", vcpu)
    if rflags & X86_EFLAGS_RF:
        run.call("kvm_set_rflags", vcpu, rflags & ~X86_EFLAGS_RF)
    return 1


SMBASE = 0x3_0000
SMM_SAVE_AREA = SMBASE + 0xFE00
"""Where the guest's state-save area is: nobody moves SMBASE from its reset value."""
SMM_SAVE_SIZE = 512


def write_guest(run: KvmRun, vcpu: int, gpa: int, data: int, size: int) -> int:
    """kvm_vcpu_write_guest() of the state-save area in SMRAM."""
    memory.copy(run, _save_area(run, gpa, size), data, size)
    return 0


def read_guest(run: KvmRun, vcpu: int, gpa: int, data: int, size: int) -> int:
    """kvm_vcpu_read_guest() of the state-save area in SMRAM."""
    memory.copy(run, data, _save_area(run, gpa, size), size)
    return 0


def _save_area(run: KvmRun, gpa: int, size: int) -> int:
    if gpa < SMM_SAVE_AREA or gpa + size > SMM_SAVE_AREA + SMM_SAVE_SIZE:
        raise Unmodelled(f"guest memory at {gpa:#x}, {size} bytes, is not modelled")
    return run.smram + gpa - SMM_SAVE_AREA


def map_ghcb(run: KvmRun, vcpu: int, gfn: int, target: int) -> int:
    """kvm_vcpu_map() of the GHCB page."""
    store_bits(run, target + run.member("struct kvm_host_map", "hva"), 64, run.ghcb)
    store_bits(run, target + run.member("struct kvm_host_map", "gfn"), 64, gfn)
    return 0


def unmap_ghcb(run: KvmRun, vcpu: int, target: int, *_: int) -> None:
    """kvm_vcpu_unmap() of the GHCB page."""
    store_bits(run, target + run.member("struct kvm_host_map", "hva"), 64, 0)


SEV_LEAF = 0x8000_001F
SEV_CPUID = (0x1F, 51, 15, 8)
"""EAX to EDX of that leaf: features, position of the C bit, number of ASIDs, the first for SEV without SEV-ES."""


def sev_cpuid(run: KvmRun, leaf: int, *registers: int) -> None:
    """CPUID of the host."""
    if leaf & 0xFFFF_FFFF != SEV_LEAF:
        raise Unmodelled(f"CPUID {leaf:#x} of the host is not modelled")
    for address, value in zip(registers, SEV_CPUID, strict=True):
        store_bits(run, address, 32, value)


def host_feature(run: KvmRun, *arguments: int) -> int:
    """boot_cpu_has(feature), and cpu_has(cpu, feature)."""
    return int(run.feature(arguments[-1], "host"))


def kvm_feature(run: KvmRun, number: int) -> int:
    """kvm_cpu_cap_has(feature)."""
    return int(run.feature(number, "kvm"))


def guest_feature(run: KvmRun, vcpu: int, number: int) -> int:
    """guest_cpuid_has(vcpu, feature)."""
    return int(run.feature(number, "guest"))
