"""Our KVM gives the verdicts that docs/verdicts.toml argues for the trees of the same version."""

from __future__ import annotations

import pytest

from iretrace.check import check
from iretrace.kvm.hypervisor import BuiltinHypervisor, lacks
from iretrace.kvm.revisions import REVISIONS, find
from iretrace.litmus.corpus import shipped
from tests.turns import turn
from tools.verdicts import SOURCE, bug_ids, load

ENTRIES = load(SOURCE.read_text(encoding="utf-8"), bug_ids())
HOSTS = (
    ("sev-es", "tickless"),
    ("sev-es", "ticking"),
    ("sev-es-vnmi", "tickless"),
    ("plain", "tickless"),
    ("vnmi", "tickless"),
)
"""Plain guests on a ticking host take minutes; make test runs them on the trees. SEV-ES guests on one are run with one
revision each, in turns; with IRETRACE_FULL=1 in the environment with all."""


@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize(("kind", "host"), HOSTS)
def test_the_verdicts_are_those_of_the_tree(revision: str, kind: str, host: str) -> None:
    if lacks(find(revision), kind):
        pytest.skip(f"{revision} has no {kind}")
    entries = [entry for entry in ENTRIES if revision.removeprefix("v") in entry["trees"] and host in entry["hosts"]]
    argued = {entry["test"]: entry["verdict"] for entry in entries}
    kvm = BuiltinHypervisor(revision, kind)
    tests = [test for test in shipped() if kind in test.vcpus and test.name in argued]
    if host == "ticking":
        tests = list(turn(tests, list(REVISIONS).index(revision), len(REVISIONS)))
    found = {test.name: str(check(test, kind, host, kvm).verdict) for test in tests}
    assert found == {test.name: argued[test.name] for test in tests}
