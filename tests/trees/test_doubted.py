"""Verdicts *holds* that a reader would doubt: a small edit of the tree is convicted by that very test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from iretrace.check import check
from iretrace.linux.hypervisor import TreeHypervisor
from iretrace.litmus.corpus import select
from iretrace.verdict import Verdict
from tests.trees.edits import INIT_KEEPS_IRR, QUEUED_NMIS_ARE_NO_EVENT, SVM, X86, Edit, patched

pytestmark = [pytest.mark.trees, pytest.mark.slow]

SMM = "arch/x86/kvm/smm.c"
LAPIC_H = "arch/x86/kvm/lapic.h"
MSRS = "arch/x86/kvm/msrs.c"


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the edit does, and the tests of that kind which have to notice: (test, vCPU kind, what the guest sees)."""

    what: str
    edit: Edit
    noticed: tuple[tuple[str, str, str], ...]


DOUBTS = (
    Doubt(
        "an NMI whose delivery is cut off is not redone",
        Edit(SVM, "svm_complete_interrupts", "vcpu->arch.nmi_injected = true;", ";"),
        (
            ("vnmi-cut-off", "vnmi", "never comes"),
            ("vnmi-cut-off", "sev-es-vnmi", "never comes"),
            ("nmi-redone-on-cold-stack", "plain", "never comes"),
        ),
    ),
    Doubt(
        "KVM believes that it steps, and sets no TF",
        Edit(SVM, "svm_enable_nmi_window", "svm->vmcb->save.rflags |= (X86_EFLAGS_TF | X86_EFLAGS_RF);", ";"),
        (("nmi-window-in-shadow", "plain", "never comes"), ("nmi-iret-then-spin", "plain", "never comes")),
    ),
    Doubt(
        "an SMI in an NMI handler forgets that NMIs are masked",
        Edit(SMM, "enter_smm", "vcpu->arch.hflags |= HF_SMM_INSIDE_NMI_MASK;", ";"),
        (("smi-in-nmi", "plain", "an NMI at here"), ("vnmi-smi-at-iret", "vnmi", "an NMI at here")),
    ),
    Doubt(
        "SMM masks no NMIs",
        Edit(SMM, "enter_smm", "kvm_x86_call(set_nmi_mask)(vcpu, true);", ";"),
        (("nmi-in-smm", "plain", "an NMI at inside"), ("smi-and-nmi", "plain", "shut down")),
    ),
    Doubt(
        "RSM does not bring the shadow back",
        Edit(SMM, "rsm_load_state_64", "ctxt->interruptibility = (u8)smstate->int_shadow;", ";"),
        (("smi-in-sti-shadow", "plain", "an IRQ at here"),),
    ),
    Doubt(
        "what waited for the end of SMM is forgotten",
        Edit(SMM, "kvm_smm_changed", "kvm_make_request(KVM_REQ_EVENT, vcpu);", ";"),
        (
            ("nmi-in-smm", "plain", "never comes"),
            ("two-smis", "plain", "smi_pending=1"),
            ("init-in-smm", "plain", "init_pending=1"),
        ),
    ),
    Doubt(
        "an entry that is cancelled drops what it was to inject",
        Edit(SVM, "svm_cancel_injection", "exit_int_info = control->event_inj;", "exit_int_info = 0;"),
        (
            ("nmi-and-signal", "plain", "never comes"),
            ("vnmi-and-signal", "vnmi", "never comes"),
            ("int-redone-after-signal", "plain", "never comes"),
        ),
    ),
    Doubt(
        "a virtual NMI that is pending does not count",
        Edit(X86, "process_nmi", "limit--;", ";"),
        (("vnmi-merges", "vnmi", "WARN"), ("vnmi-three-cut-off", "vnmi", "WARN")),
    ),
    Doubt(
        "KVM_GET_VCPU_EVENTS reports no shadow",
        Edit(
            X86,
            "kvm_vcpu_ioctl_x86_get_vcpu_events",
            "events->interrupt.shadow = kvm_x86_call(get_interrupt_shadow)(vcpu);",
            "events->interrupt.shadow = 0;",
        ),
        (("saved-in-a-shadow", "plain", "an IRQ at shadow"),),
    ),
    Doubt(
        "KVM_GET_VCPU_EVENTS reports no mask",
        Edit(
            X86,
            "kvm_vcpu_ioctl_x86_get_vcpu_events",
            "events->nmi.masked = kvm_x86_call(get_nmi_mask)(vcpu);",
            "events->nmi.masked = 0;",
        ),
        (("saved-in-an-nmi", "plain", "an NMI at inside"),),
    ),
    Doubt(
        "with virtual GIF an interrupt that a clear GIF holds has no window",
        Edit(SVM, "svm_enable_irq_window", "if (vgif || gif_set(svm)) {", "if (gif_set(svm)) {"),
        (("gif-holds-irq", "plain", "never comes"),),
    ),
    Doubt(
        "an interrupt goes before an NMI",
        Edit(
            X86,
            "kvm_check_and_inject_events",
            "if (vcpu->arch.nmi_pending) { r = can_inject",
            "if (vcpu->arch.nmi_pending && !kvm_cpu_has_injectable_intr(vcpu)) { r = can_inject",
        ),
        (("nmi-and-irq", "plain", "an IRQ at main"), ("nmi-and-irq-at-once", "plain", "never comes")),
    ),
    Doubt(
        "INIT leaves IRR as it is",
        INIT_KEEPS_IRR[0],
        (
            ("init-drops-irq", "plain", "an IRQ at init"),
            ("init-and-irq", "plain", "an IRQ at init"),
            ("ap-irq-over-init", "plain", "an IRQ at init"),
        ),
    ),
    Doubt(
        "INIT leaves RFLAGS as they are",
        Edit(X86, "kvm_vcpu_reset", "kvm_set_rflags(vcpu, X86_EFLAGS_FIXED);", ";"),
        (("init-while-stepping", "plain", "#DB at init"),),
    ),
    Doubt(
        "SMM does not hold INIT",
        Edit(LAPIC_H, "kvm_apic_init_sipi_allowed", "return !is_smm(vcpu) && !kvm_x86_call", "return !kvm_x86_call"),
        (("ap-init-in-smm", "plain", "WARN"), ("init-in-smm", "plain", "WARN")),
    ),
    Doubt(
        "SMM begins with the flags of before",
        Edit(SMM, "enter_smm", "kvm_set_rflags(vcpu, X86_EFLAGS_FIXED);", ";"),
        (("smi-while-stepping", "plain", "#DB at smi"),),
    ),
    Doubt(
        "RSM does not bring SS back",
        Edit(SMM, "rsm_load_state_64", "rsm_load_seg_64(vcpu, &smstate->ss, VCPU_SREG_SS);", ";"),
        (("user-smi-in-nmi", "plain", "rax is 0x18"), ("user-smi-and-nmi", "plain", "rax is 0x10")),
    ),
    Doubt(
        "a clear GIF does not hold SMIs",
        Edit(SVM, "svm_smi_blocked", "if (!gif_set(svm)) return true;", ";"),
        (("gif-holds-smi", "plain", "an SMI at"),),
    ),
    Doubt(
        "clearing SVME sets GIF",
        Edit(SVM, "svm_set_efer", "svm_leave_nested(vcpu);", "svm_leave_nested(vcpu); svm_set_gif(svm, true);"),
        (("svme-off-keeps-gif", "plain", "an NMI at main"),),
    ),
    Doubt(
        "LME may be changed while paging is on",
        Edit(MSRS, "set_efer", "(vcpu->arch.efer & EFER_LME) != (efer & EFER_LME)", "0"),
        (("wrmsr-of-lme", "plain", "could only show #GP"),),
    ),
    Doubt(
        "an IRET's end is not awaited",
        Edit(SVM, "iret_interception", "svm->awaiting_iret_completion = true;", ";"),
        (("nmi-returns-to-user", "plain", "never comes"), ("init-in-nmi-then-iret", "plain", "never comes")),
    ),
    Doubt(
        "the request for an NMI wakes nobody",
        QUEUED_NMIS_ARE_NO_EVENT[0],
        (
            ("nmi-in-reset-hold", "sev-es", "never comes"),
            ("nmis-in-reset-hold", "sev-es", "never comes"),
            ("nmi-by-ioctl-ends-hlt", "plain", "never comes"),
        ),
    ),
    Doubt(
        "KVM_GET_VCPU_EVENTS reports no NMI that is injected",
        Edit(X86, "kvm_vcpu_ioctl_x86_get_vcpu_events", "events->nmi.injected = vcpu->arch.nmi_injected;", ";"),
        (("events-saved-and-restored", "plain", "never comes"),),
    ),
)


@pytest.mark.parametrize("doubt", DOUBTS, ids=lambda doubt: doubt.what)
def test_the_doubted_verdict_changes_with_the_tree(tree_7_3: Path, doubt: Doubt) -> None:
    tree = patched(tree_7_3, "mutant.patch", [doubt.edit])
    hypervisors = {kind: TreeHypervisor(tree, vcpu=kind) for kind in sorted({kind for _, kind, _ in doubt.noticed})}
    for name, kind, says in doubt.noticed:
        (test,) = select([name])
        result = check(test, kind, "tickless", hypervisors[kind])
        assert result.verdict is Verdict.VIOLATED, (name, kind, result.reason)
        assert says in result.reason, (name, kind)
