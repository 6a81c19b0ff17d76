"""The protocol between the world and a hypervisor: the built-in KVM, a Linux tree, or a small one made by hand.

A hypervisor is a set of pure functions over states that the world only stores and compares. A host step runs from
one hand-over of the CPU (VMRUN, sleep, return to userspace) to the next. Other CPUs take part through *senders*,
each the code that raises one event (queue it, set the request, wake, kick); what a sender still has to do is itself
a state. Where a sender's steps land inside a host step is the schedule; the hypervisor names the places where
landing can matter (Pause.openings), and the world tries them all.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

from iretrace.machine.ghcb import Ghcb
from iretrace.machine.vmcb import Vmcb
from iretrace.verdict import Assumption, CLine

Packed = tuple[int, ...]
"""A packed Vmcb or Ghcb (`record.pack()`)."""

Private = Hashable
"""Hypervisor state: opaque, hashable, canonical (equal iff the hypervisor cannot behave differently)."""

SenderState = Hashable
"""What a started or fresh sender has done so far: opaque, hashable. NO_SENDER once it is done."""

NO_SENDER: SenderState = None

DR6_RESET = 0xFFFF_0FF0


class Debug(NamedTuple):
    """What the physical CPU has of debug registers beside the VMCB: DR0-3, their address masks, DR6, DR7, DEBUGCTL."""

    dr: tuple[int, int, int, int]
    masks: tuple[int, int, int, int]
    """DR0_ADDR_MASK to DR3_ADDR_MASK (MSRs C001_1027, C001_1019 to C001_101B)."""
    dr7: int
    dr6: int = DR6_RESET
    debugctl: int = 0
    """MSR 1D9h. Of its bits this model knows BTF, which makes TF trap behind branches only."""


HOST_DEBUG = Debug((0x8001, 0x8002, 0x8003, 0x8004), (1, 2, 3, 4), 0x4AA)
"""A host that uses all its breakpoints: in these tests its values are no guest's."""

NO_HOST_DEBUG = Debug((0, 0, 0, 0), (0, 0, 0, 0), 0x400)
"""A host that uses none."""


class Processor(NamedTuple):
    """The processor that a hypervisor runs on, as far as it is not the same for all."""

    nested_data_bp: bool = True
    """Without CPUID NoNestedDataBp (8000_0021h EAX[0]): a data breakpoint that is hit while #DB is delivered raises #DB
    again, and nothing can come between."""
    host_debug: Debug = NO_HOST_DEBUG
    """The host's own debug registers, as they are before the first guest and must be after each."""
    guest_svm: bool = True
    """The CPUID of a guest that is not encrypted has SVM."""


PROCESSOR = Processor()


class VmmCall(IntEnum):
    """What a VMM can do about events between two KVM_RUNs."""

    NMI = 0
    """KVM_NMI"""
    SAVE_RESTORE = 1
    """KVM_GET_VCPU_EVENTS, then KVM_SET_VCPU_EVENTS with the same struct."""


class GuestDebug(NamedTuple):
    """struct kvm_guest_debug: what a VMM asks for by KVM_SET_GUEST_DEBUG."""

    control: int
    """KVM_GUESTDBG_*; 0 detaches."""
    dr: tuple[int, int, int, int] = (0, 0, 0, 0)
    dr7: int = 0


class Cause(IntEnum):
    """Why the hypervisor runs."""

    VMEXIT = 0
    """The guest left guest mode; VMCB exit fields say why."""
    WAKE = 1
    """It slept (BLOCK) and was woken."""
    RERUN = 2
    """It returned to userspace and the VMM called KVM_RUN again."""


class PauseKind(IntEnum):
    """How a host step ends."""

    ENTER = 0
    """VMRUN with the VMCB given."""
    BLOCK = 1
    """The vCPU thread sleeps until `runnable(private)`."""
    USERSPACE = 2
    """KVM_RUN returned; exit_reason says why."""
    LOOP = 3
    """The vCPU thread goes in a circle: it is where it was before, in the same state, and goes on so for ever unless
    another CPU acts. Where one can the openings say: what becomes of it then, other schedules of this step show."""


Landing = tuple[int, int, int]
"""(k, s, n): before the k-th shared access of the host step, sender s takes n steps. Ordered by k."""


@dataclass(frozen=True, slots=True)
class View:
    """What both kinds of hypervisor can be asked, computed by the tree's own functions. For traces and `reach:`."""

    nmi_queued: int = 0
    nmi_pending: int = 0
    nmi_injected: int = 0
    nmi_masked: int = 0
    awaiting_iret_completion: int = 0
    """KVM has seen the end of the NMI handler announced (IRET intercepted, or NMI_COMPLETE in 6.1)."""
    nmi_singlestep: int = 0
    int_shadow: int = 0
    gif: int = 1
    event_inj: int = 0
    requests: int = 0
    """Number of request bits that are set."""
    mp_state: int = 0
    """0 runnable, 1 halted, 2 other."""
    irq_pending: int = 0
    """A maskable interrupt waits in the local APIC (IRR)."""
    irq_injected: int = 0
    """kvm_vcpu_arch.interrupt.injected."""
    exception_pending: int = 0
    """An exception is queued or to be re-injected."""
    dr6_active: int = 0
    """DR6 as the hypervisor answers a guest's read of it, exclusive or its reset value (DR6_ACTIVE_LOW)."""
    guest_debug: int = 0
    """kvm_vcpu.guest_debug: a debugger is attached."""
    switch_db_regs: int = 0
    """kvm_vcpu_arch.switch_db_regs: 1 breakpoints are enabled, 2 the guest has its debug registers (WONT_EXIT)."""
    svme: int = 0
    """EFER.SVME as the hypervisor believes that the guest has it."""
    smi_pending: int = 0
    """kvm_vcpu_arch.smi_pending: an SMI waits."""
    smm: int = 0
    """The hypervisor has the guest in SMM."""
    init_pending: int = 0
    """An INIT waits in the local APIC (KVM_APIC_INIT)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, beside the VMCB, where two hypervisors should agree at a hand-over."""

    requests: frozenset[str]
    """KVM_REQ_* that are set, by name without the prefix, of those about events: EVENT, NMI, SMI, IMMEDIATE_EXIT,
    UNHALT, TRIPLE_FAULT."""
    nmi_queued: int
    mp_state: int
    events: tuple[tuple[str, int], ...]
    """What KVM_GET_VCPU_EVENTS would say, as (field, value) with the field names of struct kvm_vcpu_events
    ("nmi.pending", "exception.nr", ...), without what is zero, in the struct's order."""
    debug_registers: tuple[int, ...]
    """DR0-3 as they would be loaded at the next VMRUN; () if KVM loads none."""


class Pause(NamedTuple):
    """The end of a host step."""

    kind: PauseKind
    private: Private
    vmcb: Packed
    ghcb: Packed
    senders: tuple[SenderState, ...]
    log: tuple[tuple[str, int], ...]
    """("start", s) and ("end", s) of senders during the step, in order."""
    ipi: bool
    """A physical interrupt (a kick, or the host's own reschedule IPI) is pending for this CPU at the hand-over."""
    openings: tuple[Landing, ...]
    """Where, after the last landing of the schedule, a further landing can make a difference."""
    warm: bool
    """The step resolved the nested page fault that it was entered for."""
    exit_reason: int
    """KVM_EXIT_* for USERSPACE, else 0. -4 (-EINTR) etc. when KVM_RUN failed with that errno."""
    defects: tuple[tuple[str, CLine], ...]
    """Always-defects met in the step: WARN / BUG / KVM_BUG_ON reached, host state not restored: (sentence, place)."""
    unmodelled: str = ""
    """Not empty: the step met something that is not modelled (and this says what, with C line and what to do)."""
    debug: Debug = NO_HOST_DEBUG
    """The physical CPU's debug registers at the hand-over: at VMRUN what the guest finds in DR0-3, unless DebugSwap
    loads the guest's own."""
    host_area: Debug = NO_HOST_DEBUG
    """At VMRUN: what the hypervisor has put into the host save area, which #VMEXIT loads where DebugSwap is on (swap
    type B: DR0-3 and the masks)."""
    sev_features: int = 0
    """SEV_FEATURES of the VMSA that the hypervisor launched the guest with: the processor's at the first VMRUN.
    This and the next two are told of that VMRUN alone."""
    launched: tuple[int, int] = (0, 0)
    """RFLAGS and DR7 of that VMSA: TF and breakpoints there are the guest's from its first instruction on."""
    efer_passes: int = 0
    """Accesses of EFER that the MSR permission map of the first VMRUN lets through: bit 0 reads, bit 1 writes. It does
    not change during a run."""
    turns: tuple[Hashable, ...] = ()
    """For each opening what decides how the step goes on after that landing: of two schedules of one step, from the
    same state and with the same senders, that come to equal ones either will do. () if it is not known."""
    smram: tuple[int, int] = (0, 0)
    """RIP and RFLAGS in the guest's SMM state-save area, at SMBASE + FF78h and FF70h (AMD64 APM vol. 2, "SMM
    State-Save Area"), as the hypervisor has written it into the guest's memory."""
    code_base: int = 0
    """At VMRUN of a guest that is not encrypted: the base of CS where KVM has set it since the last #VMEXIT, as a SIPI
    does; 0 where it may have left it."""
    host: Debug | None = None
    """The physical CPU's debug registers when the host was itself again after the #VMEXIT of this step (it enables
    interrupts); None if the step was entered without one, or its hypervisor has no such state."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of one step of a sender outside a host step."""

    private: Private
    sender: SenderState
    """NO_SENDER when it was the last step."""
    ipi: bool
    """The step sent the IPI that forces a #VMEXIT."""
    what: str
    """For traces, e.g. "kvm_make_request(KVM_REQ_NMI)"."""
    where: CLine
    unmodelled: str = ""


@dataclass(frozen=True, slots=True)
class Executed:
    """What a host step or sender step executed, for traces and the ledger: re-run of the same call with tracing on."""

    lines: tuple[CLine, ...]
    declined: CLine | None = None
    """The last statement that examined a waiting event and declined it, if the step did so."""
    changes: tuple[tuple[CLine, View], ...] = ()
    """The statements that changed the view, each with the view after it."""
    handling: tuple[CLine, ...] = ()
    """What the exit's handlers did about it, in a statement each."""
    before: View | None = None
    """The view as the step begins, behind what the processor has written at the #VMEXIT; None: not known."""


class Hypervisor(Protocol):
    """What the world needs of a hypervisor. Every method is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """For the verdict table, e.g. "Linux 6.1.192" or "built-in v6.12"."""
        ...

    @property
    def vcpu(self) -> str:
        """The kind of its vCPU."""
        ...

    @property
    def processor(self) -> Processor:
        """The processor that it runs on (options of the hypervisor)."""
        ...

    def start(self) -> Pause:
        """Create and reset the vCPU, launch it, and run to the first hand-over. No sender is around yet."""
        ...

    def sender(self, kind: str) -> SenderState:
        """A fresh sender for an outside event: "nmi", "irq" (the device with IRQ_VECTOR, fixed, edge), "smi", "init"
        and "sipi" (by the local APIC), or "signal" (for the vCPU thread, which the VMM handles before it calls
        KVM_RUN again). InputError for any other."""
        ...

    def step(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Pause:
        """Run from a hand-over to the next one, with sender steps landing where the schedule says.

        debug: the physical CPU's debug registers as #VMEXIT left them; for other causes as the last pause had them."""
        ...

    def send(self, private: Private, sender: SenderState) -> Sent:
        """One step of a sender while the vCPU is in guest mode, asleep or in userspace."""
        ...

    def runnable(self, private: Private) -> bool:
        """Whether a sleeping vCPU thread has been woken."""
        ...

    def view(self, private: Private) -> View:
        """The fixed view of a state."""
        ...

    def explain(
        self,
        private: Private,
        vmcb: Vmcb,
        ghcb: Ghcb,
        cause: Cause,
        senders: tuple[SenderState, ...],
        schedule: tuple[Landing, ...],
        debug: Debug = NO_HOST_DEBUG,
    ) -> Executed:
        """The statements that `step` with the same arguments executes."""
        ...

    def new_ledger(self) -> None:
        """What statements() and assumptions() tell is about what is asked from now on, and what creating it took."""
        ...

    def statements(self) -> int:
        """How many distinct C statements what was asked since new_ledger() executes from source."""
        ...

    def assumptions(self) -> tuple[Assumption, ...]:
        """Stubs, models, options and initial values that it uses."""
        ...


class ComparableHypervisor(Hypervisor, Protocol):
    """A hypervisor whose states can be held against another's."""

    def compare(self, private: Private) -> Comparison:
        """What agreement of two hypervisors is about, beside the VMCB (KVM_GET_VCPU_EVENTS on a copy of the state)."""
        ...


@runtime_checkable
class ApHypervisor(Hypervisor, Protocol):
    """A hypervisor whose vCPU can be an application processor."""

    def start_ap(self) -> Pause:
        """As start(), of a vCPU that is not the bootstrap processor, after the INIT and the SIPI that have started
        it."""
        ...


@runtime_checkable
class CallableHypervisor(Hypervisor, Protocol):
    """A hypervisor whose VMM can call the ioctls about events."""

    def vmm_call(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, call: VmmCall, debug: Debug) -> Pause:
        """The VMM makes a call between two KVM_RUNs: a pause in userspace, exit_reason 0 or -errno."""
        ...


@runtime_checkable
class DebuggableHypervisor(Hypervisor, Protocol):
    """A hypervisor whose VMM can attach a debugger to the guest."""

    def set_guest_debug(self, private: Private, vmcb: Vmcb, ghcb: Ghcb, wanted: GuestDebug, debug: Debug) -> Pause:
        """The VMM calls KVM_SET_GUEST_DEBUG between two KVM_RUNs: a pause in userspace, exit_reason 0 or -errno."""
        ...
