"""The rule table: what it says, and what it must never say."""

from __future__ import annotations

from pathlib import Path

import pytest

from iretrace.linux.answers import Model, Neutral, Storage, Value
from iretrace.linux.models.table import MODELS
from iretrace.linux.options import set_options
from iretrace.linux.rules import MAX_BYTES, applies, load_rules
from iretrace.verdict import InputError

EVENT_PATH = """
    kvm_arch_vcpu_ioctl_run vcpu_run vcpu_enter_guest vcpu_block kvm_vcpu_running kvm_arch_vcpu_runnable
    kvm_vcpu_has_events kvm_vcpu_halt kvm_vcpu_block kvm_vcpu_check_block kvm_vcpu_exit_request kvm_emulate_halt
    kvm_emulate_halt_noskip __kvm_emulate_halt kvm_skip_emulated_instruction prepare_to_rcuwait
    kvm_check_and_inject_events inject_pending_event process_nmi kvm_inject_nmi kvm_event_needs_reinjection
    kvm_is_exception_pending kvm_clear_exception_queue kvm_clear_interrupt_queue kvm_queue_interrupt
    kvm_requeue_exception kvm_requeue_exception_e kvm_multiple_exception kvm_inject_exception kvm_make_request
    __kvm_make_request kvm_check_request kvm_test_request kvm_clear_request kvm_request_pending kvm_vcpu_kick
    __kvm_vcpu_kick kvm_vcpu_wake_up __kvm_vcpu_wake_up kvm_arch_vcpu_should_kick kvm_vcpu_exiting_guest_mode
    kvm_arch_vcpu_get_wait __apic_accept_irq kvm_apic_set_irq kvm_apic_accept_events svm_nmi_allowed svm_nmi_blocked
    svm_inject_nmi svm_get_nmi_mask svm_set_nmi_mask svm_enable_nmi_window svm_is_vnmi_pending svm_set_vnmi_pending
    iret_interception db_interception nmi_interception intr_interception stgi_interception clgi_interception
    npf_interception shutdown_interception disable_nmi_singlestep svm_complete_interrupts svm_cancel_injection
    svm_vcpu_run svm_vcpu_enter_exit pre_svm_run svm_handle_exit svm_invoke_exit_handler svm_handle_exit_irqoff
    svm_exit_handlers_fastpath svm_check_exit_valid svm_handle_invalid_exit svm_inject_irq svm_inject_exception
    svm_interrupt_allowed svm_interrupt_blocked svm_enable_irq_window svm_get_rflags svm_set_rflags svm_get_if_flag
    svm_get_interrupt_shadow svm_set_interrupt_shadow svm_skip_emulated_instruction __svm_skip_emulated_instruction
    svm_set_gif gif_set enable_gif disable_gif svm_set_intercept svm_clr_intercept svm_set_iret_intercept
    svm_clr_iret_intercept recalc_intercepts sev_handle_vmgexit sev_es_validate_vmgexit sev_es_sync_from_ghcb
    sev_es_sync_to_ghcb sev_es_unmap_ghcb sev_handle_vmgexit_msr_protocol sev_es_guest sev_guest init_vmcb
    sev_init_vmcb sev_es_init_vmcb svm_vcpu_reset svm_vcpu_create kvm_vcpu_reset kvm_arch_vcpu_create
    svm_prepare_switch_to_guest sev_es_prepare_switch_to_guest is_guest_mode nested_exit_on_nmi is_vnmi_enabled
    get_vgif_vmcb svm_is_intercept vmcb_set_intercept vmcb_clr_intercept vmcb_is_intercept
    vmrun_interception nested_svm_check_permissions
""".split()
"""Functions that must run as the tree has them (design: "Reading a kernel tree")."""


@pytest.mark.parametrize("version", ["6.1.192", "6.12.117", "7.3.4"])
def test_no_rule_answers_for_a_function_of_the_event_path(version: str) -> None:
    rules = load_rules(version, [], MODELS)
    assert [name for name in EVENT_PATH if rules.function(name, "") is not None] == []


def test_every_row_says_why_and_names_a_model_that_exists() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    for table, name in rules.rows:
        if table in ("function", "macro"):
            rules.function(name, "")
    assert all(len(row.why) > 9 for row in rules.rows.values())


def test_versions_admit_a_half_open_range() -> None:
    found = [v for v in ("6.1.192", "6.2", "6.12.117", "6.13") if applies(">=6.2, <6.13", v)]
    assert found == ["6.2", "6.12.117"]


def write(path: Path, text: str) -> list[Path]:
    path.write_text(text)
    return [path]


def test_a_row_of_the_user_replaces_a_shipped_one(tmp_path: Path) -> None:
    text = '[[function]]\nname = "ktime_get"\nwhat = "value=7"\nwhy = "a clock that runs"\n'
    extra = write(tmp_path / "mine.toml", text)
    answer = load_rules("6.1.0", extra, MODELS).function("ktime_get", "")
    assert isinstance(answer, Value)
    assert answer.value == 7


def test_a_row_for_other_versions_is_left_out(tmp_path: Path) -> None:
    text = '[[function]]\nname = "later"\nwhat = "neutral"\nversions = ">=6.2"\nwhy = "came with 6.2"\n'
    extra = write(tmp_path / "mine.toml", text)
    assert load_rules("6.1.0", extra, MODELS).function("later", "") is None
    assert isinstance(load_rules("6.2.0", extra, MODELS).function("later", ""), Neutral)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[function]]\nname = "x"\nwhat = "neutral"\n', "mine.toml:1: a row needs why"),
        ('[[function]]\nwhat = "neutral"\nwhy = "because"\n', "mine.toml:1: a row needs name"),
        ('[[functions]]\nname = "x"\nwhy = "because"\n', r"unknown table \[\[functions\]\]"),
        ("[[function]\n", "mine.toml: "),
        ('[[function]]\nname = "x"\nwhat = "neutral"\nversions = "6.2"\nwhy = "b"\n', "write terms such as"),
    ],
)
def test_a_bad_row_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_rules("6.1.0", write(tmp_path / "mine.toml", text), MODELS)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.toml", "no such file"), ("", "no such file"), ("/dev/zero", "no such file"), ("big.toml", "larger than")],
)
def test_a_file_of_rows_that_is_none_is_one_clear_line(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "big.toml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(InputError, match=message):
        load_rules("6.1.0", [tmp_path / path], MODELS)


def test_rows_that_are_no_text_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="mine.toml: no text"):
        load_rules("6.1.0", [tmp_path / "mine.toml"], MODELS)


def test_an_unknown_answer_is_refused_where_it_is_used(tmp_path: Path) -> None:
    extra = write(tmp_path / "mine.toml", '[[function]]\nname = "x"\nwhat = "modle=y"\nwhy = "because"\n')
    with pytest.raises(InputError, match=r"mine.toml:1: what = 'modle=y' for x"):
        load_rules("6.1.0", extra, MODELS).function("x", "")


def test_a_row_of_the_user_may_not_answer_for_the_event_path(tmp_path: Path) -> None:
    extra = write(tmp_path / "mine.toml", '[[function]]\nname = "process_nmi"\nwhat = "neutral"\nwhy = "to cheat"\n')
    with pytest.raises(InputError, match=r"mine.toml:1: process_nmi\(\) is part of the event path"):
        load_rules("6.1.0", extra, MODELS)


def test_a_refused_function_says_why_it_is_outside_of_the_slice() -> None:
    answer = load_rules("6.1.0", [], MODELS).function("svm_handle_mce", "")
    assert isinstance(answer, Model)
    with pytest.raises(Exception, match=r"svm_handle_mce\(\) is reached.*machine checks are not part of this slice"):
        answer.call(None)


def test_a_tracepoint_that_the_tree_declares_is_neutral() -> None:
    rules = load_rules("6.1.0", [], MODELS, ["kvm_exit"])
    assert isinstance(rules.function("trace_kvm_exit", ""), Neutral)
    assert rules.function("trace_something_else", "") is None


def test_globals_are_values_or_storage() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    assert rules.global_("vgif", "") == 1
    assert rules.global_("svm_data", "") == Storage("zero")
    assert rules.global_("never_heard_of", "") is None


def test_an_option_of_the_user_changes_a_global() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    rules.constants["global", "vgif"] = 0
    assert rules.global_("vgif", "") == 0


def test_only_rows_that_were_asked_for_are_assumptions() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    assert rules.assumptions("sev-es", ()) == ()
    with rules.notes.collecting() as noted:
        rules.function("schedule", "")
        rules.global_("nested", "")
    used = {(a.kind, a.what) for a in rules.assumptions("sev-es", noted)}
    assert used == {("model", "schedule: model=schedule"), ("option", "nested: value=1")}


def test_a_parameter_is_off_without_the_feature_that_it_needs() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    set_options(rules, {"X86_FEATURE_VGIF": 0})
    assert rules.global_("vgif", "") == 0


def test_an_option_of_the_configuration_is_set_and_told() -> None:
    rules = load_rules("6.1.0", [], MODELS)
    set_options(rules, {"CONFIG_KVM_SMM": 0, "CONFIG_HZ": 1000})
    assert "CONFIG_KVM_SMM" not in rules.config
    assert rules.config["CONFIG_HZ"] == "1000"
    assert {a.what for a in rules.assumptions("plain", ())} == {"CONFIG_KVM_SMM: 0", "CONFIG_HZ: 1000"}


def test_an_option_that_is_nearly_right_is_told_which_one_is_meant() -> None:
    with pytest.raises(InputError, match=r"known are .*; did you mean nrips\?$"):
        set_options(load_rules("6.1.0", [], MODELS), {"nrip": 1})


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="known are .*nrips.*CONFIG_"):
        set_options(load_rules("6.1.0", [], MODELS), {"nosuch": 1})
