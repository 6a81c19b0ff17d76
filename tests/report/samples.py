"""Results as checks of two kernels give them, and any results at all, for tests of the formats."""

from __future__ import annotations

from hypothesis import strategies as st

from iretrace.verdict import Assumption, CLine, Ledger, Outcome, Result, Step, Trace, Verdict

SVM = "arch/x86/kvm/svm/svm.c"
SEV = "arch/x86/kvm/svm/sev.c"
X86 = "arch/x86/kvm/x86.c"

START = (
    ("nmi_queued", 0),
    ("nmi_pending", 0),
    ("nmi_injected", 0),
    ("nmi_masked", 0),
    ("gif", 1),
    ("requests", 0),
)

DECLINED = CLine(
    X86, 10070, "kvm_check_and_inject_events", "allowed = may_inject ? ask_whether_the_nmi_is_allowed(vcpu) : later;"
)

LASSO = Trace(
    stem=(
        Step("KVM", "creates the vCPU, resets it and runs it to its first VMRUN", "vcpu creation", START),
        Step("guest", "spins at main", "spin"),
        Step(
            "outside",
            "NMI 1 arrives: add one to the queue of the vCPU",
            CLine(X86, 772, "kvm_inject_nmi"),
            (("nmi_queued", 1),),
        ),
        Step(
            "outside",
            "NMI 1: kvm_make_request(KVM_REQ_NMI) of the vCPU",
            CLine(X86, 773, "kvm_inject_nmi"),
            (("requests", 1),),
        ),
        Step("outside", "the kick's IPI arrives", "R-142 request + kick is never lost"),
        Step("cpu", "#VMEXIT(INTR) at main", "take_intr_exit: INTR Intercept"),
        Step(
            "KVM",
            "event_to_inject = THE_EVENT_IS_VALID | THE_EVENT_IS_AN_NMI;",
            CLine(SVM, 3521, "svm_inject_nmi"),
            (("nmi_queued", 0), ("requests", 0), ("nmi_injected", 1), ("nmi_masked", 1), ("event_inj", 0x80000200)),
        ),
        Step("cpu", "VMRUN, injects NMI", "vmrun: VMRUN Instruction"),
        Step("cpu", "delivers NMI, saved RIP main", "take_injected: Event Injection", (("event_inj", 0),)),
        Step("guest", "nop  (nmi)", "nop"),
        Step("guest", "mark n  (nmi+1)", "mark"),
        Step("guest", "pause  (nmi+2)", "pause"),
        Step("guest", "vmgexit nmi_complete  (nmi+3): #VMEXIT(VMGEXIT)", "vmgexit", (("nmi_injected", 0),)),
        Step(
            "KVM",
            "result = svm_invoke_exit_handler(vcpu, IRET) as if it were one;",
            CLine(SEV, 2926, "sev_handle_vmgexit"),
            (("awaiting_iret_completion", 1), ("nmi_pending", 1)),
        ),
        Step("KVM", f"declines the waiting NMI: {DECLINED.text}", DECLINED),
        Step("cpu", "VMRUN, nothing injected", "vmrun: VMRUN Instruction", (("nmi_singlestep", 1),)),
    ),
    loop=(
        Step("guest", "spins at main", "spin", note="tickless host: no #VMEXIT is owed, the NMI is never delivered"),
    ),
    cause=(
        "the guest spins for ever and no #VMEXIT is owed (KVM holds nmi_queued=0 nmi_pending=1 with nmi_masked=1"
        " int_shadow=0); the processor owes an NMI, which never comes"
    ),
    cited=DECLINED,
)

WARNING = Trace(
    stem=(
        Step("KVM", "creates the vCPU, resets it and runs it to its first VMRUN", "vcpu creation", START),
        Step("KVM", "a WARN_ON_ONCE() about guests of this kind is reached", CLine(SVM, 2494, "iret_interception")),
    ),
    loop=(),
    cause="a WARN that a guest can reach",
)

LEDGER = Ledger(
    3127,
    (
        *(
            Assumption("stub", f"{name}: neutral", f"frontier.toml:{12 + n}", "tracing changes nothing")
            for n, name in enumerate(
                (
                    "trace_kvm_entry",
                    "trace_kvm_exit",
                    "kvm_mmu_reload",
                    "wait_lapic_expire",
                    "kvm_load_guest_xsave_state",
                )
            )
        ),
        Assumption("model", "atomic_xchg: model=xchg", "cells.toml:7", "one access of a shared cell"),
        Assumption("initial", "boot_cpu_data: zero", "globals.toml:3", "no feature that the slice needs"),
        Assumption("option", "vnmi: 0", "options.toml:9", "the vCPU kind sev-es has no virtual NMI"),
        Assumption("config", "CONFIG_KVM_SMM=n", "config.toml:2", "SMM is not part of the slice"),
        Assumption("knob", "shadow_blocks_exit", "machine", "consulted; every value was run"),
    ),
)


def result(test: str, verdict: Verdict, **fields: object) -> Result:
    """A result on 6.1, tickless, unless said otherwise."""
    values: dict[str, object] = {
        "test": test,
        "vcpu": "sev-es",
        "host": "tickless",
        "hypervisor": "Linux 6.1.192",
        "verdict": verdict,
        "exhausted": "all 1,204 states, 2 NMIs, tickless",
        "ledger": LEDGER,
    }
    return Result(**(values | fields))  # type: ignore[arg-type]


RESULTS = (
    result("nmi-complete-last", Verdict.HOLDS, exhausted="all 987 states, 2 NMIs, tickless"),
    result(
        "nmi-complete-then-spin",
        Verdict.VIOLATED,
        exhausted="all 2,114 states, 2 NMIs, tickless",
        trace=LASSO,
        outcomes=(Outcome(("n",), "spins"), Outcome(("n", "n"), "spins")),
    ),
    result(
        "nmi-complete-then-spin",
        Verdict.HOLDS,
        host="ticking",
        exhausted="all 3,802 states, 2 NMIs, ticking",
        notes=("the second NMI was late until an unrelated exit came",),
    ),
    result(
        "nmi-in-sti-shadow",
        Verdict.VIOLATED,
        known="sti-shadow-sev-es",
        exhausted="214 states, 1 NMI, tickless",
        trace=WARNING,
    ),
    result(
        "three-nmis",
        Verdict.UNDETERMINED,
        exhausted="200,000 states, 3 NMIs, tickless",
        reason="stopped by --max-states",
    ),
    result(
        "nmi-at-hlt",
        Verdict.UNDETERMINED,
        exhausted="all 310 states, 1 NMI, tickless",
        reason="vacuous: no state satisfies `reach: mp_state == 1`",
    ),
    result(
        "vc-inside-nmi",
        Verdict.UNDETERMINED,
        exhausted="88 states, 2 NMIs, tickless",
        reason="arch/x86/kvm/cpuid.c:1402: kvm_emulate_cpuid() is not read yet",
    ),
    result(
        "nmi-complete-then-spin",
        Verdict.HOLDS,
        hypervisor="Linux 6.12.117",
        exhausted="all 2,006 states, 2 NMIs, tickless",
        ledger=Ledger(3391, LEDGER.assumptions[5:7]),
    ),
)

HOSTILE = "evil\x1b[2J\x07\u202e\u200b\r\n\x9b31m\u4e2d\u0301 name\t"
"""A name as a hostile tree may choose it."""

TEXTS = st.one_of(st.text(max_size=60), st.text("ab ./_", max_size=200), st.just(HOSTILE))
LINES = st.builds(CLine, TEXTS, st.integers(0, 99999), TEXTS, TEXTS)
FIELDS = st.lists(
    st.tuples(st.one_of(st.sampled_from(["nmi_pending", "nmi_masked", "event_inj"]), TEXTS), st.integers(0, 2**32)),
    max_size=4,
).map(tuple)
STEPS = st.builds(
    Step,
    st.one_of(st.sampled_from(["guest", "cpu", "KVM", "outside"]), TEXTS),
    TEXTS,
    st.one_of(LINES, TEXTS),
    FIELDS,
    note=st.one_of(st.just(""), TEXTS),
)
STEP_LISTS = st.lists(STEPS, max_size=6).map(tuple)
TRACES = st.builds(Trace, STEP_LISTS, STEP_LISTS, TEXTS, st.one_of(st.none(), LINES))
ASSUMPTIONS = st.builds(Assumption, st.one_of(st.sampled_from(["stub", "knob", "config"]), TEXTS), TEXTS, TEXTS, TEXTS)
ANY_RESULTS = st.builds(
    Result,
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
    st.sampled_from(list(Verdict)),
    TEXTS,
    TEXTS,
    st.one_of(st.none(), TRACES),
    st.builds(Ledger, st.integers(0, 10**6), st.lists(ASSUMPTIONS, max_size=4).map(tuple)),
    st.lists(st.builds(Outcome, st.lists(TEXTS, max_size=3).map(tuple), TEXTS), max_size=3).map(tuple),
    TEXTS,
    st.lists(TEXTS, max_size=2).map(tuple),
)
