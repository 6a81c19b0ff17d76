"""KVM_SET_GUEST_DEBUG: the VMM attaches a debugger to the guest, by the tree's own function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iretrace.linux.host import KernelRun
from iretrace.linux.initial import Places, build, take
from iretrace.linux.machine import SET_GUEST_DEBUG
from iretrace.linux.rules import Row
from iretrace.linux.unmodelled import Unmodelled
from iretrace.world.protocol import GuestDebug

if TYPE_CHECKING:
    from iretrace.linux.vm import Vm

STRUCT = "struct kvm_guest_debug"
DR7_AT = 7
"""arch.debugreg[] holds DR0-3 and DR7 by their numbers (include/uapi/linux/kvm.h, KVM_SET_GUEST_DEBUG)."""


class Debugger:
    """Calls the ioctl on a copy of a state. The struct that userspace hands over is part of no state."""

    def __init__(self, vm: Vm) -> None:
        layout = vm.machine.layout
        kind = layout.named(STRUCT)
        size = layout.size_of(kind)
        self._struct = vm.program.space.allocate("guest_debug", size, vm.vcpu).address
        self._words = range(self._struct, self._struct + size, 8)
        self._control = self._struct + vm.machine.member(STRUCT, "control")
        self._registers = self._struct + vm.machine.member(STRUCT, "arch")
        self._vcpu = vm.address("svm") + vm.machine.member("struct vcpu_svm", "vcpu")
        if self._control & 7:
            raise Unmodelled(f"{STRUCT} does not begin with control")

    def set(self, run: KernelRun, wanted: GuestDebug) -> int:
        """What the ioctl returns."""
        run.m[self._control] = wanted.control
        for number, value in (*enumerate(wanted.dr), (DR7_AT, wanted.dr7)):
            run.m[self._registers + 8 * number] = value
        result = run.call(SET_GUEST_DEBUG, self._vcpu, self._struct)
        for word in self._words:
            run.m.pop(word, None)
        assert isinstance(result, int)
        return result


def launch_debugged(vm: Vm, run: KernelRun, launch: Row, places: Places, control: int) -> None:
    """The VMM attaches a debugger before it launches an encrypted guest, whose registers KVM can still write. Where KVM
    then refuses to launch it the VMM takes the debugger away, and launches it as any other."""
    debugger = Debugger(vm)
    debugger.set(run, GuestDebug(control))
    if take(run, launch, vm.layout, places) < 0:
        debugger.set(run, GuestDebug(0))
        build(run, [launch], vm.layout, places)
