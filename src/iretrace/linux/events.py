"""Events from outside: the tree's functions that raise them on another CPU."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from iretrace.linux import memory
from iretrace.linux.host import SenderRun
from iretrace.linux.machine import ACCEPT, SIGNAL
from iretrace.linux.sender import Hook, Reached, Recorder, Sender, Senders
from iretrace.linux.states import States, is_stack
from iretrace.linux.vm import Vm
from iretrace.machine.vectors import IRQ_VECTOR, SIPI_VECTOR

APIC_DM_FIXED = 0
APIC_DM_SMI = 0x200
APIC_DM_NMI = 0x400
APIC_DM_INIT = 0x500
APIC_DM_STARTUP = 0x600
"""Delivery modes (arch/x86/include/asm/apicdef.h)."""

MODES = {"nmi": APIC_DM_NMI, "smi": APIC_DM_SMI, "init": APIC_DM_INIT, "sipi": APIC_DM_STARTUP}

EVENTS = ("nmi", "irq", "smi", "init", "sipi", "signal")
"""Kinds of senders."""


def senders_of(vm: Vm, states: States, cells: frozenset[int]) -> Senders:
    """Senders to a vCPU. cells: the words that they share with it."""

    def make(kind: str) -> Sender:
        start = partial(_run_sender, vm, cells, kind)
        return Sender(start, states.base, is_stack, states.masks, vm.program.space.describe, vm.machine.notes)

    return Senders({kind: make(kind) for kind in EVENTS})


def _run_sender(vm: Vm, cells: frozenset[int], kind: str, words: Recorder, hook: Hook) -> SenderRun:
    run = SenderRun(vm.program, hook)
    vm.prepare(run)
    run.m = words
    run.cells = cells
    run.sp = memory.stack_area(1)
    with suppress(Reached), vm.program.noting(run):
        if kind == "signal":
            run.call(SIGNAL, vm.address("task"), 0)
        elif kind == "irq":
            run.call(ACCEPT, vm.address("apic"), APIC_DM_FIXED, IRQ_VECTOR, 1, 0, 0)
        else:
            vector = SIPI_VECTOR if kind == "sipi" else 0
            run.call(ACCEPT, vm.address("apic"), MODES[kind], vector, 0, 0, 0)
    return run
