"""Small changes to a kernel tree: fixes, defects put back, and changes that no guest can see."""

from __future__ import annotations

from iretrace.linux.edits import SEV, SVM, X86, Edit, make_patch, patched

__all__ = ["SEV", "SVM", "X86", "Edit", "make_patch", "patched"]

# The mail's bug (docs/bugs.toml, nmi-complete-defers-unmasking). -----------------------------------------------------

FIX_ON_6_1 = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "ret = svm_invoke_exit_handler(vcpu, SVM_EXIT_IRET);",
        "vcpu->arch.hflags &= ~HF_NMI_MASK;\n\t\tkvm_make_request(KVM_REQ_EVENT, vcpu);\n\t\tret = 1;",
    ),
)
"""NMI_COMPLETE opens the gate at once, and what waits is examined on the way back into the guest."""

REVERT_ON_6_12 = (
    Edit(SEV, "sev_handle_vmgexit", "svm->nmi_masked = false;", "svm->awaiting_iret_completion = true;"),
    Edit(SVM, "svm_complete_interrupts", "kvm_rip_read(vcpu) !=", "(sev_es_guest(vcpu->kvm) || kvm_rip_read(vcpu) !="),
    Edit(SVM, "svm_complete_interrupts", "nmi_iret_rip)", "nmi_iret_rip))"),
)
"""NMI_COMPLETE only notes that the end is near; the next #VMEXIT opens the gate."""

NO_EVENT_REQUEST = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "svm->nmi_masked = false; kvm_make_request(KVM_REQ_EVENT, vcpu);",
        "svm->nmi_masked = false;",
    ),
)
"""NMI_COMPLETE opens the gate, but nobody looks at what waits before it."""

REQUEST_IF_PENDING = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "svm->nmi_masked = false; kvm_make_request(KVM_REQ_EVENT, vcpu);",
        "svm->nmi_masked = false;\n\t\tif (vcpu->arch.nmi_pending)\n\t\t\tkvm_make_request(KVM_REQ_EVENT, vcpu);",
    ),
)
"""The same event request, only where an NMI waits. No guest can tell the difference."""

# Changes that no guest can see. --------------------------------------------------------------------------------------

FIX_IN_A_NEW_FUNCTION = (
    Edit(
        SEV,
        "sev_handle_vmgexit",
        "svm->nmi_masked = false; kvm_make_request(KVM_REQ_EVENT, vcpu);",
        "nmi_is_complete(svm);",
        before="static void nmi_is_complete(struct vcpu_svm *svm)\n{\n\tsvm->nmi_masked = false;\n"
        "\tkvm_make_request(KVM_REQ_EVENT, &svm->vcpu);\n}\n\n",
    ),
)
"""Code that only moves: the two statements of NMI_COMPLETE in a function of their own."""

POINTLESS_SINGLE_STEP = (Edit(SVM, "svm_enable_nmi_window", "if (sev_es_guest(vcpu->kvm)) return;", ""),)
"""Arms a single-step that the processor ignores, because it reads no TF from outside of an encrypted save area."""

MORE_LINES = (Edit(X86, "kvm_inject_nmi", "atomic_inc", "/* one\n\t * more\n\t */\n\tatomic_inc"),)
"""All functions behind it stand on other lines."""

# Other defects of the event path. ------------------------------------------------------------------------------------

INTERCEPT_IRET = (Edit(SVM, "svm_set_iret_intercept", "if (!sev_es_guest(svm->vcpu.kvm))", ""),)
"""IRET of an encrypted guest exits: the guest gets #VC for an event that the GHCB protocol does not have."""

REINJECT_VC = (Edit(SVM, "svm_complete_interrupts", "if (vector == X86_TRAP_VC) break;", ""),)
"""#VC is delivered again with what the GHCB held the first time."""

QUEUE_OF_ONE = (Edit(X86, "process_nmi", "limit = 2", "limit = 1"),)
"""Of two NMIs that arrive while none is in service the second is lost."""

QUEUE_OF_TWO = (Edit(X86, "process_nmi", "limit = 1", "limit = 2"),)
"""One in service and two pending: the guest sees more NMIs than a processor's latch can hold."""

NO_REQUEST_FOR_NMIS = (Edit(X86, "process_nmi", "kvm_make_request(KVM_REQ_EVENT, vcpu);", ";"),)
"""NMIs are counted, and nobody looks at them."""

BOOLEAN_PENDING = (Edit(X86, "process_nmi", "+= atomic_xchg", "|= !!atomic_xchg"),)
"""Pending is yes or no, as before Linux 3.2: two NMIs at once become one."""

NMI_COMPLETE_UNKNOWN = (Edit(SEV, "sev_es_validate_vmgexit", "case SVM_VMGEXIT_NMI_COMPLETE:", ""),)
"""NMI_COMPLETE is not among the events that KVM knows: the GHCB comes back with an error."""

# Historical defects in debug events and re-delivery, put back (tools/results.py has the entry of each). --------

STEPPING_SHOWS_TF = (Edit(SVM, "svm_get_rflags", "if (svm->nmi_singlestep) {", "if (0) {"),)
"""KVM takes the TF that it has set for the guest's own, and leaves it behind when it stops stepping."""

STEPPING_ACROSS_AN_INJECTION = (
    Edit(SVM, "svm_vcpu_run", "disable_nmi_singlestep(svm); force_immediate_exit = true;", ";"),
)
"""KVM keeps single-stepping while it injects an event: the frame on the guest's stack has KVM's TF."""

NO_UNWIND = (
    Edit(
        SVM,
        "svm_complete_interrupts",
        "if (soft_int_injected) svm_complete_soft_interrupt(vcpu, vector, type);",
        "",
    ),
)
"""A software interrupt that was to be injected and was not leaves RIP behind the instruction."""

SOFT_INTERRUPT_RETRIED = (Edit(SVM, "svm_complete_interrupts", "kvm_queue_interrupt(vcpu, vector, true);", ""),)
"""INTn whose delivery was cut off is not injected again: the guest executes it again."""

DB_NOT_INTERCEPTED = (Edit(SVM, "init_vmcb", "set_exception_intercept(svm, DB_VECTOR);", ""),)
"""#DB goes to the guest, KVM's own single step included, and with the DR6 that KVM has loaded."""

DR6_NOT_CLEARED = (Edit(SVM, "svm_vcpu_run", "svm_set_dr6(vcpu, DR6_ACTIVE_LOW);", ";"),)
"""The guest runs with the DR6 of its last #DB instead of an empty one: causes add up."""

STALE_DR6_ON_REENTRY = (Edit(X86, "vcpu_enter_guest", "run_flags = 0; /* Note, VM-Exits", "/* Note, VM-Exits"),)
"""KVM loads its copy of DR6 also where it enters the guest again without having read back what the guest wrote."""

DR6_OF_KVM = (Edit(SVM, "svm_vcpu_run", "svm_set_dr6(vcpu, DR6_ACTIVE_LOW);", "svm_set_dr6(vcpu, vcpu->arch.dr6);"),)
"""The guest runs with the DR6 that it would read, not with an empty one: a processor may keep old causes, too."""

DR7_VMGEXIT_IS_AN_ACCESS = (Edit(SVM, "dr_interception", "if (sev_es_guest(vcpu->kvm)) return 1;", ""),)
"""KVM takes a VMGEXIT for DR7 for an access of the guest's debug registers, and loads what it knows of them."""

DR7_INTERCEPTED_UNDER_DEBUG_SWAP = (Edit(SEV, "sev_es_init_vmcb", "if (!sev_vcpu_has_debug_swap(svm)) {", "if (1) {"),)
"""DR7 exits although DebugSwap is on: the guest gets a #VC for what the processor does by itself."""

DEBUG_SWAP_ANYWAY = (Edit(SEV, "sev_hardware_setup", "|| !cpu_feature_enabled(X86_FEATURE_NO_NESTED_DATA_BP)", ""),)
"""KVM lets VMMs turn DebugSwap on where data breakpoints nest."""

SEV_ES_DB_NOT_INTERCEPTED = (
    Edit(SEV, "sev_es_init_vmcb", "recalc_intercepts(svm); } else {", "recalc_intercepts(svm); } {"),
)
"""#DB of encrypted guests is not intercepted, DebugSwap or not."""

HOST_MASKS_NOT_SAVED = tuple(
    Edit(SEV, "sev_es_prepare_switch_to_guest", f"hostsa->dr{n}_addr_mask = amd_get_dr_addr_mask({n});", "")
    for n in range(4)
)
"""#VMEXIT loads masks from the host save area under DebugSwap, and KVM has put none there."""

HOST_MASKS_SAVED_IF_KVM_KNOWS = (
    Edit(
        SEV,
        "sev_es_prepare_switch_to_guest",
        "(sev_snp_guest(kvm) && cpu_feature_enabled(X86_FEATURE_DEBUG_SWAP))",
        "0",
    ),
)
"""Nothing is saved for SNP guests that turn DebugSwap on by themselves."""

DEBUG_SWAP_BY_DEFAULT = (
    Edit(
        SEV,
        "__sev_guest_init",
        "sev->vmsa_features = data->vmsa_features;",
        "sev->vmsa_features = valid_vmsa_features;",
    ),
)
"""Every SEV-ES guest gets all features that there are: its measurement changes, not what it sees."""

GP_SETUP_IN_SVM = (
    Edit(SEV, "sev_init_vmcb", "clr_exception_intercept(svm, GP_VECTOR);", ""),
    Edit(
        SVM,
        "init_vmcb",
        "if (sev_guest(vcpu->kvm)) sev_init_vmcb(svm);",
        "if (sev_guest(vcpu->kvm)) {\n\t\tsev_init_vmcb(svm);\n\t\tclr_exception_intercept(svm, GP_VECTOR);\n\t}",
    ),
)
"""Where #GP is set up moves from SEV's file to SVM's."""

PROTECTED_GUESTS_ARE_DEBUGGED = (
    Edit(X86, "kvm_arch_vcpu_ioctl_set_guest_debug", "if (vcpu->arch.guest_state_protected) return -EINVAL;", ""),
)
"""KVM_SET_GUEST_DEBUG succeeds for a guest whose registers KVM cannot write."""

DEBUGGED_GUESTS_ARE_NOT_REFUSED = (
    Edit(
        SEV,
        "__sev_launch_update_vmsa",
        'if (vcpu->guest_debug) { pr_warn_once("KVM_SET_GUEST_DEBUG for SEV-ES guest is not supported");'
        " return -EINVAL; }",
        "",
    ),
)
"""KVM_SEV_LAUNCH_UPDATE_VMSA does not say why it fails for a guest that is debugged."""

DEBUGGED_GUESTS_ARE_LAUNCHED = (
    *DEBUGGED_GUESTS_ARE_NOT_REFUSED,
    Edit(SEV, "sev_es_sync_vmsa", "svm->vcpu.guest_debug || ", ""),
)
"""KVM_SEV_LAUNCH_UPDATE_VMSA succeeds for a guest that is debugged: its first state has the debugger's TF."""

STEP_LOST_WITH_RFLAGS = (
    Edit(
        SVM,
        "svm_set_rflags",
        "if (to_svm(vcpu)->nmi_singlestep) rflags |= (X86_EFLAGS_TF | X86_EFLAGS_RF);",
        "",
    ),
)
"""Whoever writes RFLAGS ends KVM's single step; events are requested with it, and the step is armed again."""

# Historical defects around queued and virtual NMIs, put back. ---------------------------------------------------------

WARN_IN_FRONT_OF_THE_MASK = (
    Edit(
        SVM,
        "svm_enable_nmi_window",
        "if (svm_get_nmi_mask(vcpu)) { WARN_ON_ONCE(is_vnmi_enabled(svm));",
        "WARN_ON_ONCE(is_vnmi_enabled(svm));\n\tif (svm_get_nmi_mask(vcpu)) {",
    ),
)
"""KVM warns of every NMI window of a guest with virtual NMIs, also of one that an interrupt shadow needs."""

PENDING_IS_BLOCKING = (
    Edit(SVM, "svm_is_vnmi_pending", "V_NMI_PENDING_MASK", "V_NMI_BLOCKING_MASK"),
)  # fmt: skip
"""KVM takes a virtual NMI in service for one that is pending, and has no room for another."""

INJECTED_IS_NOT_IN_SERVICE = (
    Edit(X86, "process_nmi", "|| vcpu->arch.nmi_injected", ""),
)  # fmt: skip
"""An NMI that has to be injected again does not count when KVM looks how many more there may be."""

PENDING_BY_SENDERS = (
    Edit(
        X86,
        "kvm_inject_nmi",
        "atomic_inc(&vcpu->arch.nmi_queued); kvm_make_request(KVM_REQ_NMI, vcpu);",
        "++vcpu->arch.nmi_pending;\n\tkvm_make_request(KVM_REQ_EVENT, vcpu);",
    ),
)
"""Senders count in nmi_pending themselves, while the vCPU thread looks at it."""
# What the VMM saves and restores. ------------------------------------------------------------------------------------

PENDING_NMIS_AS_A_BIT = (
    Edit(
        X86,
        "kvm_vcpu_ioctl_x86_get_vcpu_events",
        "events->nmi.pending = kvm_get_nr_pending_nmis(vcpu);",
        "events->nmi.pending = kvm_get_nr_pending_nmis(vcpu) != 0;",
    ),
)
"""KVM_GET_VCPU_EVENTS says whether there is an NMI, not how many."""

NMI_REQUEST_FOR_ANY_RESTORE = (
    Edit(
        X86,
        "kvm_vcpu_ioctl_x86_set_vcpu_events",
        "if (events->nmi.pending) kvm_make_request(KVM_REQ_NMI, vcpu);",
        "kvm_make_request(KVM_REQ_NMI, vcpu);",
    ),
)
"""KVM_SET_VCPU_EVENTS requests that NMIs be looked at although there are none."""


# GIF and EFER. -------------------------------------------------------------------------------------------------------

INJECTION_WANTS_GIF = (
    Edit(SVM, "svm_inject_irq", "if (intr->soft) {", "BUG_ON(!gif_set(svm));\n\n\tif (intr->soft) {"),
)
"""KVM asserts that no interrupt is injected while GIF is clear, which INT n is, whatever GIF says."""

EFER_TRAP_KEEPS_SVME = (Edit(SVM, "efer_trap", "exit_info_1 & ~EFER_SVME", "exit_info_1"),)
"""KVM holds the SVME that hardware has set against an encrypted guest that has no SVM: #GP for a legal write."""

LMA_IS_NOT_TRACKED = (
    Edit(
        SVM,
        "svm_set_cr0",
        "if (vcpu->arch.efer & EFER_LME) {",
        "if ((vcpu->arch.efer & EFER_LME) && !vcpu->arch.guest_state_protected) {",
    ),
)
"""KVM does not notice that an encrypted guest is in long mode."""

GIF_OPENS_UNSEEN = (Edit(SVM, "svm_set_gif", "kvm_make_request(KVM_REQ_EVENT, &svm->vcpu); } else {", "; } else {"),)
"""STGI exits, and nobody looks at what waited for it."""

STGI_IS_NO_WINDOW = (Edit(SVM, "svm_enable_nmi_window", "svm_set_intercept(svm, INTERCEPT_STGI);", ";"),)
"""An NMI that GIF holds back has nothing that would have KVM called when GIF opens."""

WINDOW_LOST_WITH_SVME = (
    Edit(SVM, "svm_recalc_instruction_intercepts", "kvm_make_request(KVM_REQ_EVENT, &svm->vcpu);", ";"),
)
"""The intercept of STGI is taken away when SVME is set, and the NMI that waits under it is forgotten."""

IRQ_WINDOW_LOST_WITH_CLGI = (Edit(SVM, "svm_set_gif", "if (!vgif) svm_clear_vintr(svm);", "svm_clear_vintr(svm);"),)
"""With virtual GIF, too, CLGI takes the interrupt window away; it is never an exit then."""

IRET_DONE_AT_ANY_EXIT = (
    Edit(
        SVM,
        "svm_complete_interrupts",
        "svm->awaiting_iret_completion && kvm_rip_read(vcpu) != svm->nmi_iret_rip",
        "svm->awaiting_iret_completion",
    ),
)
"""Any exit behind the intercept counts as the end of the IRET, also one for a page that the IRET could not read."""

IRET_DONE_AT_ITS_INTERCEPT = (
    Edit(SVM, "iret_interception", "svm->awaiting_iret_completion = true;", "svm->nmi_masked = false;"),
)
"""The intercept of IRET, at which it has not executed, opens the gate."""

# The look of a vCPU that is about to sleep (test_recheck.py). -----------------------------------------------------

KVM_MAIN = "virt/kvm/kvm_main.c"

LOOK_BEFORE_TASK_STATE = (
    Edit(
        KVM_MAIN,
        "kvm_vcpu_block",
        "set_current_state(TASK_INTERRUPTIBLE); if (kvm_vcpu_check_block(vcpu) < 0) break;",
        "if (kvm_vcpu_check_block(vcpu) < 0)\n\t\t\tbreak;\n\t\tset_current_state(TASK_INTERRUPTIBLE);",
    ),
)
"""The thread looks first and says then that it sleeps: who comes in between does not wake it."""

SLEEP_BEFORE_THE_FIRST_LOOK = (
    Edit(KVM_MAIN, "kvm_vcpu_block", "if (kvm_vcpu_check_block(vcpu)", "if (waited && kvm_vcpu_check_block(vcpu)"),
)
"""The thread does not look again between the task state and the first sleep."""

QUEUED_NMIS_ARE_NO_EVENT = (Edit(X86, "kvm_vcpu_has_events", "kvm_test_request(KVM_REQ_NMI, vcpu) ||", ""),)
"""An NMI that is queued and not pending yet is not seen."""

MASKED_NMIS_ARE_EVENTS = (Edit(X86, "kvm_vcpu_has_events", "&& kvm_x86_call(nmi_allowed)(vcpu, false)", ""),)
"""A pending NMI ends HLT, whether or not it can be taken."""

INTERRUPTS_ARE_NO_EVENT = (Edit(X86, "kvm_vcpu_has_events", "kvm_cpu_has_interrupt(vcpu)", "0"),)
"""No interrupt ends HLT."""

# SMM and INIT beside user mode, interrupts and debuggers (test_combinations.py). ----------------------------------

LAPIC = "arch/x86/kvm/lapic.c"

CPL_STAYS = (Edit(SVM, "svm_set_segment", "svm->vmcb->save.cpl = (var->dpl & 3);", ";"),)
"""Loading SS leaves CPL as it is: RSM does not go back to user mode."""

INIT_KEEPS_INJECTED_INTERRUPTS = (Edit(X86, "kvm_vcpu_reset", "kvm_clear_interrupt_queue(vcpu);", ";"),)
"""What was to be delivered again is delivered behind INIT."""

INIT_KEEPS_IRR = (Edit(LAPIC, "kvm_lapic_reset", "kvm_lapic_set_reg(apic, APIC_IRR + 0x10 * i, 0);", ";"),)
"""The local APIC remembers its interrupts over INIT."""

INIT_KEEPS_THE_APIC_ENABLED = (
    Edit(LAPIC, "kvm_lapic_reset", "apic_set_spiv(apic, 0xff)", "apic_set_spiv(apic, 0x1ff)"),
)
"""The local APIC accepts interrupts behind INIT."""

SMRAM_HAS_THE_DEBUGGERS_TF = (Edit("arch/x86/kvm/regs.c", "kvm_get_rflags", "rflags &= ~X86_EFLAGS_TF;", ";"),)
"""A debugger's TF is taken for the guest's, and saved with it."""

A_STRUCT = (Edit(SVM, "svm_vcpu_run", "trace_kvm_entry(vcpu", "struct more { int more; };\n\ttrace_kvm_entry(vcpu"),)
"""More than a function may have changed."""
