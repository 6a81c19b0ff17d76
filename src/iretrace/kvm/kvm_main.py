"""Sleeping (virt/kvm/kvm_main.c). There is no halt polling: it only delays the sleep."""

from __future__ import annotations

from iretrace.kvm.kvm_host import (
    AGAIN,
    CELL_TASK_STATE,
    NOT_MODELLED_LOOP,
    READ,
    SLEEP,
    WRITE,
    Vcpu,
    not_modelled,
    vcpu_signal_pending,
)
from iretrace.kvm.x86 import kvm_arch_vcpu_runnable
from iretrace.subset import shared, u1, u8, wrap8

MOST_WAKE_UPS = 32


def set_current_state(vcpu: Vcpu, sleeping: u1) -> None:
    """TASK_INTERRUPTIBLE or TASK_RUNNING. A sender that finds the former makes it the latter."""
    shared(vcpu.thread, CELL_TASK_STATE, 1, WRITE)
    vcpu.sleeping = sleeping


def kvm_vcpu_check_block(vcpu: Vcpu) -> bool:
    """Whether a thread that is about to sleep must not."""
    return kvm_arch_vcpu_runnable(vcpu) or vcpu_signal_pending(vcpu)


def kvm_vcpu_block(vcpu: Vcpu) -> u8:
    """Sleep until there is something to do: SLEEP where schedule() would be called, AGAIN when it is over. After a
    sleep the driver calls it again. First the state is set, then the look is taken, so that no wake-up is missed."""
    rounds: u8 = 0
    while rounds < MOST_WAKE_UPS:
        rounds = wrap8(rounds + 1)
        set_current_state(vcpu, 1)
        if kvm_vcpu_check_block(vcpu):
            set_current_state(vcpu, 0)
            return AGAIN
        shared(vcpu.thread, CELL_TASK_STATE, 1, READ)
        if vcpu.sleeping:
            return SLEEP
    return not_modelled(vcpu, NOT_MODELLED_LOOP)
