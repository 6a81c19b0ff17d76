"""A vCPU of our KVM on the bench, without guest and processor."""

from __future__ import annotations

from iretrace.kvm.create import kvm_arch_vcpu_create
from iretrace.kvm.host import HostRun, registers_of
from iretrace.kvm.kvm_host import Kvm, Vcpu, VcpuDebug, VcpuSvm
from iretrace.kvm.revisions import REVISIONS
from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.world.protocol import NO_HOST_DEBUG


def make_vcpu(kind: str = "plain", revision: str = "v6.12", vgif: int = 1, nrips: int = 1) -> Vcpu:
    """A vCPU as KVM_CREATE_VCPU and the VMM leave it, with RIP 10 and no request."""
    svm = VcpuSvm(vmcb=Vmcb(), ghcb=Ghcb())
    sev_es, vnmi, bits = int(kind.startswith("sev-es")), int(kind.endswith("vnmi")), REVISIONS[revision].bits
    kvm = Kvm(registers_of(NO_HOST_DEBUG), sev_es, 0, vgif, vnmi, nrips, 3000, bits)
    debug = VcpuDebug([0] * 4, [0] * 4, [0] * 4, [0] * 4, 0, 0, 0, 0, 0, 0, 0)
    vcpu = Vcpu(kvm=kvm, thread=None, svm=svm, debug=debug)  # type: ignore[arg-type]
    vcpu.thread = HostRun(vcpu, (), (), True)
    kvm_arch_vcpu_create(vcpu)
    vcpu.requests = 0
    vcpu.rip = 10
    return vcpu
