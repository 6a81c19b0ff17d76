"""Revisions of our KVM: each is a set of differences, and each difference changes one behaviour.

What does not change behaviour has no entry: that NMI masks moved from hflags to named fields in v6.3, say.
"""

from __future__ import annotations

from dataclasses import dataclass

from iretrace.kvm import differences
from iretrace.verdict import InputError


@dataclass(frozen=True, slots=True)
class Difference:
    """One change of behaviour. number: its bit in Kvm.revision (differences.py). since: the first version that has it
    (`by v6.12`: that one has it, and v6.1 has not). commit: upstream, where known."""

    name: str
    number: int
    what: str
    since: str
    commit: str = ""


DIFFERENCES = (
    Difference(
        "SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE",
        differences.SINCE_NMI_COMPLETE_UNMASKS_AT_ONCE,
        "NMI_COMPLETE of an SEV-ES guest opens the NMI gate when it is handled. Before, it was taken for an intercepted"
        " IRET, and the gate opened only at the next #VMEXIT.",
        "v6.6",
        "389fbbec261b",
    ),
    Difference(
        "SINCE_NO_POINTLESS_SINGLE_STEP",
        differences.SINCE_NO_POINTLESS_SINGLE_STEP,
        "KVM does not set RFLAGS.TF to find an NMI window of an SEV-ES guest: the processor does not read it.",
        "v6.6",
        "a6bb57090297",
    ),
    Difference(
        "SINCE_EVENT_REQUEST_IFF_NMI_PENDING",
        differences.SINCE_EVENT_REQUEST_IFF_NMI_PENDING,
        "After queued NMIs were taken over, events are looked at again only if an NMI is pending.",
        "v6.4",
        "2cb9317377ca",
    ),
    Difference(
        "SINCE_ALL_PENDING_NMIS_ARE_REPORTED",
        differences.SINCE_ALL_PENDING_NMIS_ARE_REPORTED,
        "KVM_GET_VCPU_EVENTS says how many NMIs are pending. Before, it said only whether there are any.",
        "v6.4",
        "ab2ee212a57b",
    ),
    Difference(
        "SINCE_RESTORED_NMIS_ARE_QUEUED",
        differences.SINCE_RESTORED_NMIS_ARE_QUEUED,
        "NMIs that KVM_SET_VCPU_EVENTS restores are queued, and go through process_nmi(). Before, they were pending at"
        " once.",
        "v6.4",
        "bdedff263132",
    ),
    Difference(
        "SINCE_HALT_LOOKS_FOR_EVENTS",
        differences.SINCE_HALT_LOOKS_FOR_EVENTS,
        "HLT does not halt the vCPU if an event waits. Before, it always did, and the loop of KVM_RUN woke it up.",
        "by v6.12",
    ),
    Difference(
        "SINCE_HLT_IN_FASTPATH",
        differences.SINCE_HLT_IN_FASTPATH,
        "HLT is handled right behind VMRUN. If an event waits, KVM enters the guest again without injecting anything"
        " first, unless there is a request.",
        "by v6.12",
    ),
    Difference(
        "SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME",
        differences.SINCE_SVM_INSTRUCTIONS_EXIT_WITHOUT_SVME,
        "STGI, CLGI, VMLOAD and VMSAVE of a guest whose EFER.SVME is 0 exit and raise #UD. Before, virtual GIF and"
        " virtual VMLOAD let them through, since the processor always sees SVME set.",
        "by v7.3",
    ),
    Difference(
        "SINCE_ICEBP_IS_INTERCEPTED",
        differences.SINCE_ICEBP_IS_INTERCEPTED,
        "INT1 exits, and KVM moves RIP behind it before it injects #DB. Before, the processor delivered it; if that was"
        " cut off, KVM injected #DB with RIP at INT1.",
        "by v7.3",
    ),
    Difference(
        "SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED",
        differences.SINCE_DR_EXITS_OF_SEV_ES_ARE_IGNORED,
        "A VMGEXIT for DR7 of an SEV-ES guest does nothing. Before, KVM took it for an access of the guest's debug"
        " registers, and loaded its own, all zero, into DR0-3 at every VMRUN from then on.",
        "v6.6",
        "c2690b5f0194",
    ),
    Difference(
        "SINCE_HOST_DRS_ARE_RESTORED_BY_KVM",
        differences.SINCE_HOST_DRS_ARE_RESTORED_BY_KVM,
        "Under DebugSwap KVM saves only the address masks of the host's breakpoints for #VMEXIT to load, and restores"
        " DR0-3 itself, like those of any guest. Before, it saved DR0-3 too.",
        "v6.15",
        "807cb9ce2ed9",
    ),
    Difference(
        "SINCE_EMULATED_DB_GOES_TO_ANY_DEBUGGER",
        differences.SINCE_EMULATED_DB_GOES_TO_ANY_DEBUGGER,
        "A single-step trap behind an instruction that KVM has done goes to a debugger that has set breakpoints, too."
        " Before, only to one that single-steps.",
        "by v7.3",
    ),
    Difference(
        "SINCE_PAYLOAD_COMES_WITH_INJECTION",
        differences.SINCE_PAYLOAD_COMES_WITH_INJECTION,
        "DR6 gets the cause of a #DB when it is injected. Before, when it was queued.",
        "by v6.12",
    ),
    Difference(
        "SINCE_CLEARING_SVME_KEEPS_GIF",
        differences.SINCE_CLEARING_SVME_KEEPS_GIF,
        "A guest that clears EFER.SVME keeps its GIF. Before, KVM set it, and what GIF=0 held back came.",
        "by v7.3",
    ),
    Difference(
        "SINCE_DEBUGCTL_IS_SWITCHED",
        differences.SINCE_DEBUGCTL_IS_SWITCHED,
        "A guest runs with its own DEBUGCTL, 0, and the host has its own again afterwards. Before, the guest ran with"
        " the host's where LBR virtualization was off.",
        "by v6.12",
    ),
    Difference(
        "SINCE_SMRAM_HAS_THE_SHADOW",
        differences.SINCE_SMRAM_HAS_THE_SHADOW,
        "An SMI in the shadow of STI or MOV SS ends the shadow, and RSM brings it back. Before, it went on in SMM, and"
        " was lost behind RSM.",
        "v6.2",
    ),
    Difference(
        "SINCE_NMI_MASK_OUTLIVES_INIT",
        differences.SINCE_NMI_MASK_OUTLIVES_INIT,
        "INIT leaves the mask of NMIs, and that an IRET was intercepted, as they are; only RESET clears them. Before,"
        " they were among the hflags, all of which INIT clears.",
        "v6.3",
    ),
    Difference(
        "SINCE_ENCRYPTED_GUESTS_GET_NO_SMI",
        differences.SINCE_ENCRYPTED_GUESTS_GET_NO_SMI,
        "An SMI that is sent to an encrypted guest is dropped, as it has no SMM. Before, KVM put its own idea of the"
        " guest into SMM, with NMIs masked, and the guest knew nothing of it.",
        "by v7.3",
    ),
    Difference(
        "SINCE_SHUTDOWN_OF_SEV_ES_IS_TOLD",
        differences.SINCE_SHUTDOWN_OF_SEV_ES_IS_TOLD,
        "KVM_RUN of an encrypted guest that has shut down ends with KVM_EXIT_SHUTDOWN. Before, it failed with EINVAL.",
        "by v6.12",
    ),
    Difference(
        "SINCE_RESET_HOLD_HAS_A_TYPE",
        differences.SINCE_RESET_HOLD_HAS_A_TYPE,
        "KVM remembers that the guest has asked to be held, until it enters it again, and a SIPI tells it so only then."
        " Before, it told the guest so in whatever request it had not answered yet, and knew of no request by the GHCB"
        " MSR protocol.",
        "by v6.12",
    ),
    Difference(
        "SINCE_INTERCEPTS_ARE_MADE_ON_REQUEST",
        differences.SINCE_INTERCEPTS_ARE_MADE_ON_REQUEST,
        "A reset leaves it to the next VMRUN to intercept what the guest has not got. Before, it did it itself.",
        "by v7.3",
    ),
)


@dataclass(frozen=True, slots=True)
class Revision:
    """A KVM: the differences that it has, as bits (1 << Difference.number)."""

    name: str
    bits: int

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Those that it has."""
        return tuple(difference for difference in DIFFERENCES if self.bits >> difference.number & 1)

    def flipped(self, difference: Difference) -> Revision:
        """The same KVM with or without one difference."""
        sign = "-" if self.bits >> difference.number & 1 else "+"
        return Revision(f"{self.name}{sign}{difference.name}", self.bits ^ 1 << difference.number)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.rpartition("v")[2].split("."))


def _revision(name: str) -> Revision:
    has = (d for d in DIFFERENCES if _version(d.since) <= _version(name))
    return Revision(name, sum(1 << difference.number for difference in has))


REVISIONS: dict[str, Revision] = {name: _revision(name) for name in ("v6.1", "v6.12", "v7.3")}
"""Oldest first."""

NEWEST = "v7.3"


def find(name: str) -> Revision:
    """The revision of that name. InputError: there is none."""
    if name not in REVISIONS:
        raise InputError(f"--revision {name!a}: no such revision; there are {', '.join(REVISIONS)}")
    return REVISIONS[name]


def explain() -> str:
    """What each revision changed, in a sentence per difference."""
    lines = []
    older: tuple[Difference, ...] = ()
    for revision in REVISIONS.values():
        lines.append(f"{revision.name}{' (the newest)' if revision.name == NEWEST else ''}")
        if not older and not revision.differences:
            lines.append("  what the others are compared with")
        for difference in revision.differences:
            if difference not in older:
                commit = f", {difference.commit}" if difference.commit else ""
                lines += [f"  {difference.name} ({difference.since}{commit})", f"    {difference.what}"]
        older = revision.differences
    return "\n".join(lines) + "\n"
