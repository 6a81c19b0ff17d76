"""This CPU, the current thread, sleeping and being woken, interrupts of the host, VMRUN."""

from __future__ import annotations

from typing import Any

from iretrace.linux.answers import Site
from iretrace.linux.models.run import KvmRun, load_bits, read_modify_write, store_bits
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
KVM_EXIT_INTR = 10
EINTR = 4


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
    return 0 if run.cpu else load_bits(run, address, site.pointee[0])


def this_cpu_write(run: KvmRun, site: Site, address: int, value: int) -> None:
    """Sets a per-CPU variable of this CPU."""
    store_bits(run, per_cpu_ptr(run, address, run.cpu), site.pointee[0], value)


def current(run: KvmRun) -> int:
    """The thread that runs."""
    return run.task


def set_current_state(run: KvmRun, state: int) -> None:
    """Sets the state of the thread that runs."""
    store_bits(run, run.task + TASK_STATE, 32, state)


def finish_rcuwait(run: KvmRun, wait: int) -> None:
    """kernel/exit.c: the thread waits no longer."""
    store_bits(run, wait + run.member("struct rcuwait", "task"), 64, 0)
    set_current_state(run, TASK_RUNNING)


def rcuwait_wake_up(run: KvmRun, wait: int) -> int:
    """kernel/exit.c: wakes the thread that waits, if one does."""
    task = load_bits(run, wait + run.member("struct rcuwait", "task"), 64)
    return wake_up_process(run, task) if task else 0


def wake_up_process(run: KvmRun, task: int) -> int:
    """kernel/sched: makes a sleeping thread runnable; 1 if it slept, or was about to."""
    old = read_modify_write(run, task + TASK_STATE, 32, lambda state: TASK_RUNNING if state & TASK_NORMAL else state)
    return int(old & TASK_NORMAL != 0)


def schedule(run: KvmRun) -> Any:
    """Sleeps, unless the thread was woken since it said that it would."""
    if not load_bits(run, run.task + TASK_STATE, 32) & TASK_NORMAL:
        return None
    run.hand_over(PauseKind.BLOCK)
    return PAUSE


def thread_flags(run: KvmRun, *_: int) -> int:
    """TIF_* flags of the thread."""
    return load_bits(run, run.task + THREAD_FLAGS, 64)


def signal_pending(run: KvmRun, task: int) -> int:
    """Whether a signal is pending for the thread."""
    return int(load_bits(run, task + THREAD_FLAGS, 64) & TIF_SIGPENDING != 0)


def signal_wake_up_state(run: KvmRun, task: int, state: int) -> None:
    """kernel/signal.c: a signal is pending for the thread; wakes it, or kicks it if it runs (kick_process())."""
    read_modify_write(run, task + THREAD_FLAGS, 64, lambda flags: flags | TIF_SIGPENDING, blind=True)
    if not wake_up_process(run, task):
        smp_send_reschedule(run, 0)


def handle_work(run: KvmRun, vcpu: int = 0) -> int:
    """kernel/entry: xfer_to_guest_mode_handle_work(): a pending signal ends KVM_RUN with -EINTR.

    vcpu: given by the trees whose function says so in kvm_run; in newer ones the caller does (kvm_host.h)."""
    if not thread_flags(run) & TIF_SIGPENDING:
        return 0
    if not vcpu:
        return -EINTR
    page = load_bits(run, vcpu + run.member("struct kvm_vcpu", "run"), 64)
    store_bits(run, page + run.member("struct kvm_run", "exit_reason"), 32, KVM_EXIT_INTR)
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


def vmrun(run: KvmRun, *_: int) -> Any:
    """The CPU enters the guest."""
    run.hand_over(PauseKind.ENTER)
    return PAUSE
