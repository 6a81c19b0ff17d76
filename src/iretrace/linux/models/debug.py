"""Debug registers of the host."""

from __future__ import annotations

from iretrace.linux.models.run import KvmRun


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
