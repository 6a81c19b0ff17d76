"""Models of kernel primitives, on a run made by hand."""

from __future__ import annotations

import pytest

from iretrace.linux.answers import Site
from iretrace.linux.ctree import Pos
from iretrace.linux.memory import ReadCheck, Space, WriteCheck
from iretrace.linux.models import debug, findings, frontier, memory, thread
from iretrace.linux.physical import DebugRegisters
from iretrace.linux.program import PAUSE
from iretrace.linux.unmodelled import Unmodelled
from iretrace.world.protocol import HOST_DEBUG, NO_HOST_DEBUG, PauseKind


class FakeRun:
    """What models need, and a record of what they announce."""

    smram = 0

    def __init__(self, shared: frozenset[int] = frozenset()) -> None:
        self.m: dict[int, int] = {}
        self.read, self.write = ReadCheck(Space()), WriteCheck(Space())
        self.read.update(dict.fromkeys(range(0, 4096, 8), 0))
        self.write.update(self.read)
        self.cells = shared
        self.cpu = 0
        self.task = 0x800
        self.interrupts = True
        self.gif = True
        self.ipi = False
        self.warm = False
        self.ghcb = 0xC00
        self.announced: list[tuple[int, int, str]] = []
        self.findings: list[str] = []
        self.paused: list[PauseKind] = []
        self.physical = DebugRegisters(HOST_DEBUG, HOST_DEBUG)
        self.itself = 0

    def interrupts_are_on(self) -> None:
        self.itself += 1

    def shared(self, address: int, mask: int, write: bool) -> None:
        self.announced.append((address, mask, "write" if write else "read"))

    def blind(self, address: int, mask: int) -> None:
        self.announced.append((address, mask, "blind"))

    def finding(self, what: str, site: Site) -> None:
        self.findings.append(what)

    def allocate(self, size: int) -> int:
        return 0xE00

    def feature(self, number: int, who: str) -> bool:
        return False

    def call(self, name: str, *args: int) -> int:
        raise AssertionError(f"no model tried here calls {name}()")

    def member(self, struct: str, name: str) -> int:
        return {"task": 0, "hva": 8, "gfn": 24}[name]

    def hand_over(self, kind: PauseKind) -> None:
        self.paused.append(kind)


def site(bits: int = 64) -> Site:
    return Site(Pos("x.c", 1), "f", ("x",), (64, bits), (bits, 0))


def test_bits_lie_where_x86_has_them() -> None:
    run = FakeRun()
    memory.set_bit(run, 0x63, 0x100)
    assert run.m == {0x108: 1 << 0x23}
    assert memory.test_bit(run, 0x63, 0x100) == 1
    memory.clear_bit(run, 0x63, 0x100)
    assert run.m == {0x108: 0}


def test_a_bitmap_may_start_in_the_middle_of_a_word() -> None:
    run = FakeRun()
    memory.set_bit(run, 1, 0x10C)
    assert run.m == {0x108: 1 << 33}


def test_a_shared_bit_is_announced_alone() -> None:
    run = FakeRun(frozenset({0x100}))
    memory.test_bit(run, 3, 0x100)
    memory.set_bit(run, 4, 0x100)
    assert memory.test_and_clear_bit(run, 4, 0x100) == 1
    assert run.announced == [(0x100, 8, "read"), (0x100, 16, "blind"), (0x100, 16, "write")]


def test_atomic_operations_touch_32_bits() -> None:
    run = FakeRun()
    run.m[0x100] = 7 << 32
    memory.atomic_inc(run, 0x104)
    assert memory.atomic_xchg(run, 0x104, 0) == 8
    memory.atomic_dec(run, 0x104)
    assert run.m[0x100] == 0xFFFF_FFFF << 32


def test_cmpxchg_changes_only_what_it_expects() -> None:
    run = FakeRun()
    run.m[0x100] = 1
    assert memory.cmpxchg(run, site(32), 0x100, 0, 2) == 1
    assert memory.cmpxchg(run, site(32), 0x100, 1, 2) == 1
    assert run.m[0x100] == 2


def test_schedule_sleeps_only_while_nobody_woke_the_thread() -> None:
    run = FakeRun()
    thread.set_current_state(run, 1)
    assert thread.schedule(run) is PAUSE
    assert run.paused == [PauseKind.BLOCK]
    assert thread.wake_up_process(run, run.task) == 1
    assert thread.schedule(run) is None


def test_waking_a_thread_that_runs_does_nothing() -> None:
    run = FakeRun()
    run.m[0x100] = run.task
    assert thread.rcuwait_wake_up(run, 0x100) == 0


def test_a_wait_that_is_over_wakes_nobody() -> None:
    run = FakeRun()
    run.m[0x100] = run.task
    thread.set_current_state(run, 1)
    thread.finish_rcuwait(run, 0x100)
    assert thread.rcuwait_wake_up(run, 0x100) == 0
    assert run.m[run.task] == 0


def test_an_interrupt_waits_until_interrupts_and_gif_are_on() -> None:
    run = FakeRun()
    thread.irq_disable(run)
    thread.smp_send_reschedule(run, 0)
    assert run.ipi
    thread.clgi(run)
    thread.irq_enable(run)
    assert run.ipi
    thread.stgi(run)
    assert not run.ipi


def test_per_cpu_data_of_another_cpu_is_an_error() -> None:
    with pytest.raises(Unmodelled, match="per-CPU data of CPU 1"):
        thread.per_cpu_ptr(FakeRun(), 0x100, 1)


def test_no_vcpu_runs_on_the_cpu_of_a_sender() -> None:
    run = FakeRun()
    run.m[0x100] = 5
    assert thread.this_cpu_read(run, site(), 0x100) == 5
    run.cpu = 1
    assert thread.this_cpu_read(run, site(), 0x100) == 0


def test_a_warning_is_a_finding_and_keeps_its_value() -> None:
    run = FakeRun()
    assert findings.warn_on(run, site(), 0) == 0
    assert findings.warn_on(run, site(), 4) == 1
    assert run.findings == ["WARN"]


def test_a_bug_ends_the_step() -> None:
    run = FakeRun()
    findings.bug_on(run, site(), 0)
    with pytest.raises(findings.Bug):
        findings.bug_on(run, site(), 1)
    assert run.findings == ["BUG"]


def test_mapping_the_ghcb_gives_its_address() -> None:
    run = FakeRun()
    assert frontier.map_ghcb(run, 0, 0x500, 0x100) == 0
    assert run.m[0x108] == run.ghcb
    frontier.unmap_ghcb(run, 0, 0x100)
    assert run.m[0x108] == 0


def test_the_host_restores_all_its_debug_registers() -> None:
    run = FakeRun()
    for number in range(4):
        debug.set_debugreg(run, number, 0x7000 + number)
    debug.set_debugreg(run, 7, 0)
    assert [debug.get_debugreg(run, number) for number in (0, 3, 7)] == [0x7000, 0x7003, 0x400]
    debug.hw_breakpoint_restore(run)
    assert run.physical.now() == HOST_DEBUG


def test_a_host_without_breakpoints_has_none_active() -> None:
    run = FakeRun()
    assert debug.hw_breakpoint_active(run) == 1
    run.physical = DebugRegisters(NO_HOST_DEBUG, NO_HOST_DEBUG)
    assert debug.hw_breakpoint_active(run) == 0


def test_dr6_of_the_host_has_its_reserved_bits_and_is_reset_with_the_breakpoints() -> None:
    run = FakeRun()
    debug.set_debugreg(run, 6, 0x4001)
    assert debug.get_debugreg(run, 6) == 0xFFFF_4FF1
    assert run.physical.now().dr6 == 0xFFFF_4FF1
    debug.hw_breakpoint_restore(run)
    assert debug.get_debugreg(run, 6) == 0xFFFF_0FF0


def test_dr4_of_the_host_cannot_be_read() -> None:
    with pytest.raises(Unmodelled, match="DR4"):
        debug.get_debugreg(FakeRun(), 4)


def test_debugctl_is_the_processors() -> None:
    run = FakeRun()
    assert debug.get_debugctl(run) == 0
    debug.update_debugctl(run, 2)
    assert (debug.get_debugctl(run), run.physical.now().debugctl) == (2, 2)


def test_the_host_is_itself_again_when_it_enables_interrupts_with_gif_set() -> None:
    run = FakeRun()
    thread.clgi(run)
    thread.irq_enable(run)
    assert run.itself == 0
    thread.irq_disable(run)
    thread.stgi(run)
    thread.irq_enable(run)
    assert run.itself == 1
