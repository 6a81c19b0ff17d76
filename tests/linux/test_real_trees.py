"""The front end on real kernels: what the event path needs is there, and nothing of it is dropped silently."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iretrace.linux import ctree
from iretrace.linux.index import Index
from iretrace.linux.parse import ParseError
from iretrace.linux.tree import open_tree

pytestmark = pytest.mark.trees

CONFIG = dict.fromkeys(
    "CONFIG_X86 CONFIG_X86_64 CONFIG_64BIT CONFIG_SMP CONFIG_KVM CONFIG_KVM_AMD CONFIG_KVM_AMD_SEV CONFIG_KVM_SMM "
    "CONFIG_KVM_XEN CONFIG_KVM_HYPERV CONFIG_KVM_ASYNC_PF CONFIG_HAVE_KVM_IRQCHIP CONFIG_HAVE_KVM_IRQ_ROUTING "
    "CONFIG_HAVE_KVM_EVENTFD CONFIG_X86_LOCAL_APIC CONFIG_HAVE_STATIC_CALL CONFIG_PREEMPT_NOTIFIERS".split(),
    "y",
)

EVENT_PATH = """
    vcpu_enter_guest kvm_check_and_inject_events process_nmi svm_enable_nmi_window svm_inject_nmi iret_interception
    db_interception svm_complete_interrupts svm_cancel_injection sev_handle_vmgexit sev_es_validate_vmgexit
    sev_es_sync_from_ghcb sev_es_sync_to_ghcb svm_vcpu_run svm_vcpu_enter_exit init_vmcb sev_es_init_vmcb vcpu_run
    vcpu_block kvm_vcpu_block kvm_vcpu_halt kvm_vcpu_kick kvm_inject_nmi __apic_accept_irq svm_handle_exit
    npf_interception kvm_emulate_halt svm_nmi_allowed svm_nmi_blocked svm_get_nmi_mask svm_set_nmi_mask
    svm_set_intercept svm_clr_intercept recalc_intercepts svm_set_gif gif_set svm_get_rflags svm_set_rflags
    kvm_arch_vcpu_runnable kvm_vcpu_has_events kvm_check_request kvm_make_request kvm_vcpu_exiting_guest_mode
    kvm_arch_vcpu_should_kick kvm_vcpu_check_block svm_prepare_switch_to_guest svm_vcpu_reset kvm_vcpu_reset
    kvm_arch_vcpu_create svm_vcpu_create kvm_vcpu_ioctl_x86_get_vcpu_events kvm_vcpu_ioctl_x86_set_vcpu_events
    is_guest_mode kvm_rax_read kvm_rip_write kvm_ghcb_get_rax_if_valid kvm_ghcb_sw_exit_code_is_valid ghcb_set_rax
""".split()

RENAMED = {
    "sev_es_validate_vmgexit": "sev_es_are_required_ghcb_fields_valid",
    "recalc_intercepts": "svm_recalc_intercepts",
}
"""Functions by the names that they have after 6.12."""

STRUCTS = """
    kvm kvm_run kvm_vcpu kvm_vcpu_arch vcpu_svm vmcb vmcb_control_area vmcb_save_area sev_es_save_area ghcb
""".split()
TYPEDEFS = "u8 u16 u32 u64 __u64 s64 bool gpa_t gfn_t atomic_t atomic64_t spinlock_t cpumask_t size_t".split()
OPS = "svm_x86_ops kvm_x86_ops svm_exit_handlers npt_enabled svm_data halt_poll_ns".split()

PARSED_WHOLE = ("arch/x86/kvm/svm", "arch/x86/kvm/x86.c", "arch/x86/kvm/lapic.c", "virt/kvm/kvm_main.c")


@pytest.fixture(scope="module", params=["tree_6_1", "tree_6_12", "tree_7_3"])
def index(request: pytest.FixtureRequest) -> Index:
    path: Path = request.getfixturevalue(request.param)
    return Index(open_tree(path), CONFIG, {"READ_ONCE", "WRITE_ONCE", "WARN_ON_ONCE", "static_call", "kvm_x86_call"})


@pytest.mark.parametrize("name", EVENT_PATH)
def test_every_function_of_the_event_path_is_parsed(index: Index, name: str) -> None:
    function = index.function(name) or index.function(RENAMED.get(name, name))
    assert function is not None
    assert function.last_line >= function.pos.line
    assert function.body.items


@pytest.mark.parametrize("tag", STRUCTS)
def test_every_struct_of_the_event_path_has_fields(index: Index, tag: str) -> None:
    struct = index.struct("struct", tag)
    assert struct is not None
    assert struct.fields


def test_types_variables_enumerators_and_op_lists_are_found(index: Index) -> None:
    assert [name for name in TYPEDEFS if index.typedef(name) is None] == []
    assert [name for name in OPS if index.variable(name) is None] == []
    ops = index.variable("svm_x86_ops")
    assert ops is not None
    assert isinstance(ops.init, ctree.InitList)
    assert index.enumerator("OUTSIDE_GUEST_MODE") is not None
    assert "vcpu_precreate" in index.op_list("KVM_X86_OP_OPTIONAL_RET0")


def _failures(index: Index) -> Iterator[str]:
    paths = [source.path for source in index.sources if source.path.startswith(PARSED_WHOLE)]
    for path in paths:
        for name in index.functions_in(path):
            try:
                function = index.function(name, path)
            except ParseError as error:
                yield str(error)
                continue
            if function is None or function.pos.path != path:
                yield f"{path}: {name} is lost"


@pytest.mark.slow
def test_every_function_of_kvm_for_amd_is_parsed(index: Index) -> None:
    assert list(_failures(index)) == []


def test_a_function_covers_its_lines(index: Index) -> None:
    function = index.function("process_nmi")
    assert function is not None
    lines = (index.tree.text(function.pos.path) or "").split("\n")
    assert "process_nmi" in lines[function.pos.line - 1]
    assert lines[function.last_line - 1] == "}"


@pytest.mark.slow
def test_a_tree_is_indexed_in_a_few_seconds(index: Index) -> None:
    start = time.process_time()
    Index(index.tree, CONFIG)
    assert time.process_time() - start < 5
