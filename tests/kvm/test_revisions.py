"""Revisions are sets of differences; each difference is one bit, one behaviour, one sentence."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from iretrace.check import check
from iretrace.kvm import differences
from iretrace.kvm.hypervisor import BuiltinHypervisor, State
from iretrace.kvm.kvm_host import KVM_REQ_NMI, Vcpu
from iretrace.kvm.revisions import DIFFERENCES, NEWEST, REVISIONS, Revision, find
from iretrace.litmus.corpus import select
from iretrace.subset import pack, unpack
from iretrace.verdict import InputError, Verdict
from iretrace.world.protocol import Comparison
from tests.kvm.lockstep import first_vmcb

BY_NAME = {difference.name: difference for difference in DIFFERENCES}


def verdict(revision: Revision, test: str, kind: str) -> Verdict:
    (found,) = select([test])
    return check(found, kind, "tickless", BuiltinHypervisor(revision, kind)).verdict


def test_every_number_is_a_difference() -> None:
    numbers = {name: value for name, value in vars(differences).items() if name.startswith("SINCE_")}
    assert {difference.name: difference.number for difference in DIFFERENCES} == numbers
    assert len(set(numbers.values())) == len(numbers)


def test_a_newer_revision_has_what_an_older_one_has() -> None:
    sets = [revision.bits for revision in REVISIONS.values()]
    assert all(older & newer == older for older, newer in pairwise(sets))
    assert len(set(sets)) == len(sets)
    assert list(REVISIONS)[-1] == NEWEST


def test_the_oldest_revision_has_none() -> None:
    assert REVISIONS["v6.1"].bits == 0


def test_a_revision_that_there_is_not_is_an_input_error() -> None:
    with pytest.raises(InputError, match="there are v6.1, v6.12, v7.3"):
        find("v5.10")


def test_flipping_a_difference_twice_changes_nothing() -> None:
    revision = REVISIONS["v6.12"]
    for difference in DIFFERENCES:
        assert revision.flipped(difference).flipped(difference).bits == revision.bits
        assert difference.name in revision.flipped(difference).name


# Each difference, flipped, shows: in a verdict, or where its reason says.

SHOWN_BY_VERDICT = {
    "SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE": ("nmi-complete-then-spin", "sev-es"),
    "SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME": ("clgi-is-ud", "plain"),
    "SINCE_SHUTDOWN_OF_SEV_ES_IS_TOLD": ("sev-es-shut-down", "sev-es"),
    "SINCE_ICEBP_IS_INTERCEPTED": ("int1-on-cold-stack", "plain"),
    "SINCE_CLEARING_SVME_KEEPS_GIF": ("svme-off-keeps-gif", "plain"),
    "SINCE_SMRAM_HAS_THE_SHADOW": ("smi-in-sti-shadow", "plain"),
    "SINCE_ENCRYPTED_GUESTS_GET_NO_SMI": ("smi-to-encrypted-guest", "sev-es"),
    "SINCE_ALL_PENDING_NMIS_ARE_REPORTED": ("events-saved-and-restored", "plain"),
}
NO_VERDICT = {
    "SINCE_NO_POINTLESS_SINGLE_STEP": "benign: the processor does not read TF from the VMCB of an encrypted guest",
    "SINCE_EVENT_REQUEST_IFF_NMI_PENDING": "a look at events that finds none",
    "SINCE_RESTORED_NMIS_ARE_QUEUED": "process_nmi() keeps as many as were saved",
    "SINCE_HALT_LOOKS_FOR_EVENTS": "the loop of KVM_RUN looks right after it; but see the test below",
    "SINCE_RESET_HOLD_HAS_A_TYPE": "what is said of a SIPI in the answer to another request no guest looks at",
    "SINCE_HLT_IN_FASTPATH": "an event that is injected one instruction later is late, not lost",
    "SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED": "nobody swaps DR0-3 of an encrypted guest without DebugSwap: no contract",
    "SINCE_HOST_DRS_ARE_RESTORED_BY_KVM": "the host has its DR0-3 again either way",
    "SINCE_PAYLOAD_COMES_WITH_INJECTION": "the guest has not run in between",
    "SINCE_NMI_MASK_OUTLIVES_INIT": "no manual says what INIT does to the mask",
    "SINCE_INTERCEPTS_ARE_MADE_ON_REQUEST": "a guest runs with them either way",
    "SINCE_DEBUGCTL_IS_SWITCHED": "on the usual host it is 0; the test below has another host",
    "SINCE_EMULATED_DB_GOES_TO_ANY_DEBUGGER": "#DB is not compared while a debugger is attached",
}


def test_every_difference_is_told_of() -> None:
    assert SHOWN_BY_VERDICT.keys() | NO_VERDICT.keys() == BY_NAME.keys()
    assert not SHOWN_BY_VERDICT.keys() & NO_VERDICT.keys()


@pytest.mark.parametrize("revision", ["v6.1", "v7.3"])
@pytest.mark.parametrize("name", SHOWN_BY_VERDICT)
def test_flipping_it_flips_the_verdict(name: str, revision: str) -> None:
    difference, (test, kind) = BY_NAME[name], SHOWN_BY_VERDICT[name]
    without = REVISIONS[revision].flipped(difference) if revision == "v7.3" else REVISIONS[revision]
    having = without.flipped(difference)
    assert verdict(without, test, kind) is Verdict.VIOLATED
    assert verdict(having, test, kind) is Verdict.HOLDS


@pytest.mark.parametrize(("revision", "expected"), [("v6.1", Verdict.VIOLATED), ("v6.12", Verdict.HOLDS)])
@pytest.mark.parametrize("test", ["step-in-nmi", "nmi-window-in-shadow"])
def test_a_host_with_btf_shows_whether_debugctl_is_switched(test: str, revision: str, expected: Verdict) -> None:
    (found,) = select([test])
    kvm = BuiltinHypervisor(revision, "plain", {"host_debugctl": 2})
    assert check(found, "plain", "tickless", kvm).verdict is expected


def test_looking_for_events_before_the_hold_is_what_loses_a_sipi() -> None:
    looks = REVISIONS["v7.3"]
    assert verdict(looks, "reset-hold-ends-by-sipi", "sev-es") is Verdict.VIOLATED
    blind = looks.flipped(BY_NAME["SINCE_HALT_LOOKS_FOR_EVENTS"])
    assert verdict(blind, "reset-hold-ends-by-sipi", "sev-es") is Verdict.HOLDS


def comparison(revision: Revision, pending: int) -> Comparison:
    """What a vCPU with so many pending NMIs looks like."""
    hypervisor = BuiltinHypervisor(revision, "plain")
    private = hypervisor.start().private
    assert isinstance(private, State)
    vcpu = unpack(Vcpu, private.vcpu)
    vcpu.nmi_pending = pending
    vcpu.requests = 1 << KVM_REQ_NMI
    return hypervisor.compare(replace(private, vcpu=pack(vcpu)))


@pytest.mark.parametrize(("revision", "told"), [("v6.1", 1), ("v6.12", 2)])
def test_pending_nmis_are_counted_since_6_4(revision: str, told: int) -> None:
    assert dict(comparison(REVISIONS[revision], 2).events)["nmi.pending"] == told
    assert comparison(REVISIONS[revision], 2).requests == {"NMI"}


@pytest.mark.parametrize(
    ("name", "bits"),
    [("SINCE_ICEBP_IS_INTERCEPTED", 1 << 8), ("SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME", 0x3C)],
)
def test_intercepts_of_7_3(name: str, bits: int) -> None:
    words = [
        first_vmcb(BuiltinHypervisor(revision, "plain")).intercept_word4
        for revision in (REVISIONS["v6.12"], REVISIONS["v6.12"].flipped(BY_NAME[name]))
    ]
    assert words[0] ^ words[1] == bits
