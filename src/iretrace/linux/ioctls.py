"""The VMM's ioctls about events, by the tree's own functions: KVM_NMI, KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS."""

from __future__ import annotations

from iretrace.linux.comparison import GET_EVENTS
from iretrace.linux.host import KernelRun
from iretrace.linux.machine import SET_EVENTS, VCPU_NMI
from iretrace.linux.vm import Vm
from iretrace.world.protocol import VmmCall

STRUCT = "struct kvm_vcpu_events"


class Ioctls:
    """Calls them on a copy of a state. The struct that userspace hands over is part of no state."""

    def __init__(self, vm: Vm) -> None:
        size = vm.machine.layout.size_of(vm.machine.layout.named(STRUCT))
        self._struct = vm.program.space.allocate("saved_events", size, vm.vcpu).address
        self._words = range(self._struct, self._struct + size, 8)
        self._vcpu = vm.address("svm") + vm.machine.member("struct vcpu_svm", "vcpu")

    def call(self, run: KernelRun, call: VmmCall) -> int:
        """What the ioctl returns; of two that go together, the second."""
        if call == VmmCall.NMI:
            result = run.call(VCPU_NMI, self._vcpu)
        else:
            run.call(GET_EVENTS, self._vcpu, self._struct)
            result = run.call(SET_EVENTS, self._vcpu, self._struct)
            for word in self._words:
                run.m.pop(word, None)
        assert isinstance(result, int)
        return result
