"""Models: what kernel primitives and the frontier of KVM do, in Python, by the names that rules give them.

A model gets the run (`KvmRun`), with site = true also where it was called, and the C arguments as ints. Shared cells
are announced with run.shared() before each access, like the C accesses that the lowering emits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from iretrace.linux import memory
from iretrace.linux.answers import Site
from iretrace.linux.memory import ReadCheck, WriteCheck
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE
from iretrace.linux.unmodelled import Unmodelled
from iretrace.world.protocol import PauseKind

TASK_RUNNING = 0
TASK_NORMAL = 3
"""TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE: what wake_up_process() wakes."""

TASK_STATE = 0
THREAD_FLAGS = 8
"""Offsets in the objects `task` and `sender_task`."""

TIF_SIGPENDING = 1 << 2
EMULTYPE_TRAP_UD = 1 << 1
EMULTYPE_SKIP = 1 << 2
EMULTYPE_COMPLETE_USER_EXIT = 1 << 7
"""What the emulator is asked for (arch/x86/include/asm/kvm_host.h)."""

UD_VECTOR = 6
X86_EFLAGS_RF = 1 << 16
KVM_EXIT_INTR = 10
EINTR = 4
PAGE_SHIFT = 12
U64 = (1 << 64) - 1


class KvmRun(Protocol):
    """What models need of a run; hypervisor.HostRun is it."""

    m: dict[int, int]
    read: ReadCheck
    write: WriteCheck
    cells: frozenset[int]
    """Addresses of 8-byte words that hold shared members."""
    cpu: int
    """0: the vCPU thread; 1: a sender on another CPU."""
    task: int
    """The address of `current`."""
    interrupts: bool
    gif: bool
    ipi: bool
    """A physical interrupt is pending for the vCPU's CPU."""
    warm: bool
    ghcb: int
    """The address of the GHCB object."""
    smram: int
    """The address of the guest's SMM state-save area."""
    physical: DebugRegisters
    """The debug registers of the vCPU thread's CPU."""

    def shared(self, address: int, mask: int, write: bool) -> None:
        """Announces an access of a shared word."""

    def blind(self, address: int, mask: int) -> None:
        """Announces a change of a shared word whose old value is not looked at."""

    def finding(self, what: str, site: Site) -> None:
        """Notes a WARN or BUG that was reached."""

    def interrupts_are_on(self) -> None:
        """The host takes interrupts (again)."""

    def allocate(self, size: int) -> int:
        """Zeroed memory, page-aligned if a page or more."""

    def feature(self, number: int, who: str) -> bool:
        """Whether a CPU feature is there, for "host", "kvm" or "guest"."""

    def member(self, struct: str, name: str) -> int:
        """Offset of a member in bytes."""

    def call(self, name: str, *args: int) -> Any:
        """Calls a C function."""

    def hand_over(self, kind: PauseKind) -> None:
        """The vCPU thread is about to pause: the last place of the step where senders can land."""


# Memory. ---------------------------------------------------------------------------------------------------------


def load(run: KvmRun, site: Site, address: int, *_: int) -> int:
    """*address of the width that the call says; an access of a shared cell if it is one."""
    return _load(run, address, site.pointee[0])


def store(run: KvmRun, site: Site, address: int, value: int) -> None:
    """*address = value."""
    _store(run, address, site.pointee[0], value)


def _load(run: KvmRun, address: int, bits: int) -> int:
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1
    if word in run.cells:
        run.shared(word, mask << shift, False)
    return _word(run, word) >> shift & mask


def _store(run: KvmRun, address: int, bits: int, value: int) -> None:
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1 << shift
    if word in run.cells:
        run.blind(word, mask)
    _put(run, word, mask, value << shift)


def _word(run: KvmRun, word: int) -> int:
    return run.m.get(word) or run.read[word]


def _put(run: KvmRun, word: int, mask: int, bits: int) -> None:
    run.m[word] = (run.m.get(word) or run.write[word]) & ~mask | bits & mask


def _read_modify_write(run: KvmRun, address: int, bits: int, change: Callable[[int], int], blind: bool = False) -> int:
    """One atomic access; the old value, which the caller must not use if `blind`."""
    word, shift = address & ~7, (address & 7) * 8
    mask = (1 << bits) - 1
    if word in run.cells:
        if blind:
            run.blind(word, mask << shift)
        else:
            run.shared(word, mask << shift, True)
    old = _word(run, word) >> shift & mask
    _put(run, word, mask << shift, change(old) << shift)
    return old


# Bits and atomics. -------------------------------------------------------------------------------------------------


def _place(number: int, address: int) -> tuple[int, int]:
    """The word of a bitmap's bit, and the bit in it."""
    place = address + (number >> 3)
    return place & ~7, 1 << ((place & 7) * 8 + (number & 7))


def test_bit(run: KvmRun, number: int, address: int) -> int:
    """A bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.shared(word, mask, False)
    return int(_word(run, word) & mask != 0)


def set_bit(run: KvmRun, number: int, address: int) -> None:
    """Sets a bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.blind(word, mask)
    _put(run, word, mask, mask)


def clear_bit(run: KvmRun, number: int, address: int) -> None:
    """Clears a bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.blind(word, mask)
    _put(run, word, mask, 0)


def _test_and_change(run: KvmRun, number: int, address: int, bits: int) -> int:
    word, mask = _place(number, address)
    if word in run.cells:
        run.shared(word, mask, True)
    old = _word(run, word)
    _put(run, word, mask, bits)
    return int(old & mask != 0)


def test_and_set_bit(run: KvmRun, number: int, address: int) -> int:
    """Sets a bit of a bitmap; the old one."""
    return _test_and_change(run, number, address, -1)


def test_and_clear_bit(run: KvmRun, number: int, address: int) -> int:
    """Clears a bit of a bitmap; the old one."""
    return _test_and_change(run, number, address, 0)


def atomic_read(run: KvmRun, counter: int) -> int:
    """The value of an atomic_t."""
    return _load(run, counter, 32)


def atomic_set(run: KvmRun, counter: int, value: int) -> None:
    """Sets an atomic_t."""
    _store(run, counter, 32, value)


def atomic_inc(run: KvmRun, counter: int) -> None:
    """Adds one to an atomic_t."""
    _read_modify_write(run, counter, 32, lambda old: old + 1, blind=True)


def atomic_dec(run: KvmRun, counter: int) -> None:
    """Takes one from an atomic_t."""
    _read_modify_write(run, counter, 32, lambda old: old - 1, blind=True)


def atomic_add(run: KvmRun, value: int, counter: int) -> None:
    """Adds to an atomic_t."""
    _read_modify_write(run, counter, 32, lambda old: old + value & 0xFFFF_FFFF, blind=True)


def atomic_add_return(run: KvmRun, value: int, counter: int) -> int:
    """Adds to an atomic_t; the new value."""
    return _read_modify_write(run, counter, 32, lambda old: old + value & 0xFFFF_FFFF) + value


def atomic_xchg(run: KvmRun, counter: int, value: int) -> int:
    """Sets an atomic_t; the old value."""
    return _read_modify_write(run, counter, 32, lambda old: value)


def atomic_cmpxchg(run: KvmRun, counter: int, expected: int, value: int) -> int:
    """Sets an atomic_t if it has the expected value; the old value."""
    return _read_modify_write(run, counter, 32, lambda old: value if old == expected & 0xFFFF_FFFF else old)


def cmpxchg(run: KvmRun, site: Site, address: int, expected: int, value: int) -> int:
    """*address = value if it holds the expected value; the old value."""
    bits = site.pointee[0]
    mask = (1 << bits) - 1
    return _read_modify_write(run, address, bits, lambda old: value if old == expected & mask else old)


def xchg(run: KvmRun, site: Site, address: int, value: int) -> int:
    """*address = value; the old value."""
    return _read_modify_write(run, address, site.pointee[0], lambda old: value)


def fls(run: KvmRun, value: int) -> int:
    """Position of the highest bit, from 1; 0 if there is none."""
    return (value & U64).bit_length()


def fls32(run: KvmRun, value: int) -> int:
    """Position of the highest bit of an int, from 1; 0 if there is none."""
    return (value & 0xFFFF_FFFF).bit_length()


def highest_bit(run: KvmRun, value: int) -> int:
    """Position of the highest bit, from 0."""
    return (value & U64).bit_length() - 1


def ffs(run: KvmRun, value: int) -> int:
    """Position of the lowest bit, from 1; 0 if there is none."""
    return (value & -value).bit_length()


def lowest_bit(run: KvmRun, value: int) -> int:
    """Position of the lowest bit, from 0."""
    return (value & -value).bit_length() - 1


def find_next_bit(run: KvmRun, address: int, size: int, start: int) -> int:
    """The number of the next bit that is set in an array, from `start` on; `size` if there is none."""
    for number in range(start, size):
        if _word(run, address + number // 64 * 8) >> number % 64 & 1:
            return number
    return size


def hweight(run: KvmRun, value: int) -> int:
    """Number of set bits."""
    return (value & U64).bit_count()


def array_index_nospec(run: KvmRun, index: int, size: int) -> int:
    """The index; 0 if it is out of bounds."""
    return index if index < size else 0


def identity(run: KvmRun, value: int) -> int:
    """The value."""
    return value


def page_to_pfn(run: KvmRun, page: int) -> int:
    """The page's number."""
    return page >> PAGE_SHIFT


def allocate(run: KvmRun, size: int, *_: int) -> int:
    """Zeroed memory."""
    return run.allocate(size)


def allocate_array(run: KvmRun, count: int, size: int, *_: int) -> int:
    """Zeroed memory for an array."""
    return run.allocate(count * size)


def clear_page(run: KvmRun, page: int) -> None:
    """clear_page(): words that were never written are zero already."""
    for word in range(page, page + (1 << PAGE_SHIFT), 8):
        if word in run.m:
            run.m[word] = 0


def allocate_page(run: KvmRun, *_: int) -> int:
    """A zeroed page."""
    return run.allocate(1 << PAGE_SHIFT)


def allocate_pages(run: KvmRun, flags: int, order: int) -> int:
    """2^order zeroed pages."""
    return run.allocate(1 << PAGE_SHIFT + order)


# This CPU, the current thread, sleeping. ---------------------------------------------------------------------------


def this_cpu(run: KvmRun) -> int:
    """The CPU that the code runs on."""
    return run.cpu


def this_cpu_ptr(run: KvmRun, pointer: int) -> int:
    """Per-CPU data of this CPU."""
    return per_cpu_ptr(run, pointer, run.cpu)


def per_cpu_ptr(run: KvmRun, pointer: int, cpu: int) -> int:
    """Per-CPU data of a CPU: only the vCPU's CPU has any."""
    if cpu:
        raise Unmodelled(f"per-CPU data of CPU {cpu}; only the vCPU's CPU 0 has any")
    return pointer


def this_cpu_read(run: KvmRun, site: Site, address: int) -> int:
    """A per-CPU variable of this CPU; zero on a sender's CPU, where no vCPU runs."""
    return 0 if run.cpu else _load(run, address, site.pointee[0])


def this_cpu_write(run: KvmRun, site: Site, address: int, value: int) -> None:
    """Sets a per-CPU variable of this CPU."""
    _store(run, per_cpu_ptr(run, address, run.cpu), site.pointee[0], value)


def current(run: KvmRun) -> int:
    """The thread that runs."""
    return run.task


def set_current_state(run: KvmRun, state: int) -> None:
    """Sets the state of the thread that runs."""
    _store(run, run.task + TASK_STATE, 32, state)


def finish_rcuwait(run: KvmRun, wait: int) -> None:
    """kernel/exit.c: the thread waits no longer."""
    _store(run, wait + run.member("struct rcuwait", "task"), 64, 0)
    set_current_state(run, TASK_RUNNING)


def rcuwait_wake_up(run: KvmRun, wait: int) -> int:
    """kernel/exit.c: wakes the thread that waits, if one does."""
    task = _load(run, wait + run.member("struct rcuwait", "task"), 64)
    return wake_up_process(run, task) if task else 0


def wake_up_process(run: KvmRun, task: int) -> int:
    """kernel/sched: makes a sleeping thread runnable; 1 if it slept, or was about to."""
    old = _read_modify_write(run, task + TASK_STATE, 32, lambda state: TASK_RUNNING if state & TASK_NORMAL else state)
    return int(old & TASK_NORMAL != 0)


def schedule(run: KvmRun) -> Any:
    """Sleeps, unless the thread was woken since it said that it would."""
    if not _load(run, run.task + TASK_STATE, 32) & TASK_NORMAL:
        return None
    run.hand_over(PauseKind.BLOCK)
    return PAUSE


def thread_flags(run: KvmRun, *_: int) -> int:
    """TIF_* flags of the thread."""
    return _load(run, run.task + THREAD_FLAGS, 64)


def signal_pending(run: KvmRun, task: int) -> int:
    """Whether a signal is pending for the thread."""
    return int(_load(run, task + THREAD_FLAGS, 64) & TIF_SIGPENDING != 0)


def signal_wake_up_state(run: KvmRun, task: int, state: int) -> None:
    """kernel/signal.c: a signal is pending for the thread; wakes it, or kicks it if it runs (kick_process())."""
    _read_modify_write(run, task + THREAD_FLAGS, 64, lambda flags: flags | TIF_SIGPENDING, blind=True)
    if not wake_up_process(run, task):
        smp_send_reschedule(run, 0)


def handle_work(run: KvmRun, vcpu: int = 0) -> int:
    """kernel/entry: xfer_to_guest_mode_handle_work(): a pending signal ends KVM_RUN with -EINTR.

    vcpu: given by the trees whose function says so in kvm_run; in newer ones the caller does (kvm_host.h)."""
    if not thread_flags(run) & TIF_SIGPENDING:
        return 0
    if not vcpu:
        return -EINTR
    page = _load(run, vcpu + run.member("struct kvm_vcpu", "run"), 64)
    _store(run, page + run.member("struct kvm_run", "exit_reason"), 32, KVM_EXIT_INTR)
    return -EINTR


# Interrupts of the host, and VMRUN. --------------------------------------------------------------------------------


def smp_send_reschedule(run: KvmRun, cpu: int) -> None:
    """An interrupt for the vCPU's CPU; it is taken at once where interrupts are enabled."""
    run.ipi = True
    if run.cpu == 0:
        _take_interrupt(run)


def _take_interrupt(run: KvmRun) -> None:
    if run.interrupts and run.gif:
        run.ipi = False


def irq_enable(run: KvmRun) -> None:
    """sti: a pending interrupt is taken, unless GIF is 0."""
    run.interrupts = True
    if run.gif:
        run.interrupts_are_on()
    _take_interrupt(run)


def irq_disable(run: KvmRun) -> None:
    """cli."""
    run.interrupts = False


def clgi(run: KvmRun) -> None:
    """GIF := 0."""
    run.gif = False


def stgi(run: KvmRun) -> None:
    """GIF := 1."""
    run.gif = True
    _take_interrupt(run)


# Debug registers of the host.


def get_debugreg(run: KvmRun, number: int) -> int:
    """MOV from a debug register."""
    return run.physical.get(number)


def set_debugreg(run: KvmRun, number: int, value: int) -> None:
    """MOV to a debug register."""
    run.physical.set(number, value)


def get_debugctl(run: KvmRun, *_: int) -> int:
    """RDMSR of DEBUGCTL."""
    return run.physical.debugctl


def update_debugctl(run: KvmRun, value: int) -> None:
    """WRMSR of DEBUGCTL."""
    run.physical.debugctl = value


def get_dr_addr_mask(run: KvmRun, number: int) -> int:
    """The host's address mask of a breakpoint."""
    return run.physical.mask(number)


def hw_breakpoint_active(run: KvmRun) -> int:
    """Whether the host has set breakpoints."""
    return int(run.physical.host_active())


def hw_breakpoint_restore(run: KvmRun) -> None:
    """The host's breakpoints are loaded again."""
    run.physical.restore_host()


def vmrun(run: KvmRun, *_: int) -> Any:
    """The CPU enters the guest."""
    run.hand_over(PauseKind.ENTER)
    return PAUSE


# KVM's frontier. ---------------------------------------------------------------------------------------------------


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
    _store(run, target + run.member("struct kvm_host_map", "hva"), 64, run.ghcb)
    _store(run, target + run.member("struct kvm_host_map", "gfn"), 64, gfn)
    return 0


def unmap_ghcb(run: KvmRun, vcpu: int, target: int, *_: int) -> None:
    """kvm_vcpu_unmap() of the GHCB page."""
    _store(run, target + run.member("struct kvm_host_map", "hva"), 64, 0)


SEV_LEAF = 0x8000_001F
SEV_CPUID = (0x1F, 51, 15, 8)
"""EAX to EDX of that leaf: features, position of the C bit, number of ASIDs, the first for SEV without SEV-ES."""


def sev_cpuid(run: KvmRun, leaf: int, *registers: int) -> None:
    """CPUID of the host."""
    if leaf & 0xFFFF_FFFF != SEV_LEAF:
        raise Unmodelled(f"CPUID {leaf:#x} of the host is not modelled")
    for address, value in zip(registers, SEV_CPUID, strict=True):
        _store(run, address, 32, value)


def host_feature(run: KvmRun, *arguments: int) -> int:
    """boot_cpu_has(feature), and cpu_has(cpu, feature)."""
    return int(run.feature(arguments[-1], "host"))


def kvm_feature(run: KvmRun, number: int) -> int:
    """kvm_cpu_cap_has(feature)."""
    return int(run.feature(number, "kvm"))


def guest_feature(run: KvmRun, vcpu: int, number: int) -> int:
    """guest_cpuid_has(vcpu, feature)."""
    return int(run.feature(number, "guest"))


# WARN and BUG. -----------------------------------------------------------------------------------------------------


class Bug(Exception):
    """BUG() was reached: the kernel goes no further."""


def warn_on(run: KvmRun, site: Site, condition: int, *_: int) -> int:
    """WARN_ON(condition): a finding if it holds."""
    if condition:
        run.finding("WARN", site)
    return int(condition != 0)


def kvm_bug_on(run: KvmRun, site: Site, condition: int, *_: int) -> int:
    """KVM_BUG_ON(condition, kvm): a finding if it holds."""
    if condition:
        run.finding("KVM_BUG", site)
    return int(condition != 0)


def bug_on(run: KvmRun, site: Site, condition: int) -> None:
    """BUG_ON(condition): a finding if it holds, and the end of the step."""
    if condition:
        bug(run, site)


def bug(run: KvmRun, site: Site) -> None:
    """BUG(): a finding, and the end of the step."""
    run.finding("BUG", site)
    raise Bug


MODELS: dict[str, Callable[..., Any]] = {
    model.__name__: model
    for model in (
        str, load, store, test_bit, set_bit, clear_bit, test_and_set_bit, test_and_clear_bit, atomic_read,
        atomic_add, atomic_add_return,
        atomic_set, atomic_inc, atomic_dec, atomic_xchg, atomic_cmpxchg, cmpxchg, xchg, fls, fls32, highest_bit,
        ffs, lowest_bit, find_next_bit, hweight, array_index_nospec, identity, page_to_pfn, allocate, allocate_array,
        allocate_page, allocate_pages, clear_page, this_cpu, this_cpu_ptr, per_cpu_ptr, this_cpu_read,
        this_cpu_write, current, set_current_state, finish_rcuwait, rcuwait_wake_up, wake_up_process, schedule,
        thread_flags, signal_pending, signal_wake_up_state, handle_work, smp_send_reschedule, irq_enable,
        irq_disable, clgi, stgi, get_debugreg, set_debugreg, get_debugctl, update_debugctl, get_dr_addr_mask,
        hw_breakpoint_active, hw_breakpoint_restore, vmrun, map_page, emulate_instruction, write_guest, read_guest,
        map_ghcb, unmap_ghcb, sev_cpuid, host_feature, kvm_feature, guest_feature, warn_on, bug_on, bug, kvm_bug_on,
    )
}  # fmt: skip
"""Model names of the rules."""
