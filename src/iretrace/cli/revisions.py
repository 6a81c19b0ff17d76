"""The revisions of the built-in KVM: what `iretrace revisions` prints."""

from __future__ import annotations

from iretrace.kvm.revisions import DIFFERENCES, NEWEST, REVISIONS, Difference, Revision
from iretrace.report.terminal import wrap

INDENT = "    "

HEAD = """\
The KVM that is built in, as versions of Linux behave; `iretrace check --revision NAME` runs
the tests on one. Each difference changes one behaviour.
"""


def revisions_text() -> str:
    """Each revision, and in a sentence each what it does unlike the one before."""
    lines = wrap(" ".join(HEAD.split()))
    before: Revision | None = None
    for revision in REVISIONS.values():
        newest = " (the newest, which `check` takes)" if revision.name == NEWEST else ""
        lines += ["", f"{revision.name}{newest}"]
        changed = [d for d in DIFFERENCES if before and d in revision.differences and d not in before.differences]
        for difference in changed:
            lines += _told(difference)
        if before is None:
            lines.append(f"{INDENT}The oldest: what the others are compared with.")
        elif not changed:
            lines.append(f"{INDENT}Behaves as {before.name}.")
        before = revision
    return "\n".join(lines) + "\n"


def _told(difference: Difference) -> list[str]:
    commit = f", commit {difference.commit}" if difference.commit else ""
    head = wrap(f"{difference.name} ({difference.since}{commit})", INDENT, INDENT)
    return [*head, *wrap(difference.what, INDENT * 2, INDENT * 2)]
