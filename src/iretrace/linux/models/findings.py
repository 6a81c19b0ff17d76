"""WARN and BUG."""

from __future__ import annotations

from iretrace.linux.answers import Site
from iretrace.linux.models.run import KvmRun


class Bug(Exception):
    """BUG() was reached: the kernel goes no further."""


def warn_on(run: KvmRun, site: Site, condition: int, *_: int) -> int:
    """WARN_ON(condition): a finding if it holds."""
    if condition:
        run.finding("WARN", site)
    return int(condition != 0)


def kvm_bug_on(run: KvmRun, site: Site, condition: int, *_: int) -> int:
    """KVM_BUG_ON(condition, kvm): a finding if it holds."""
    if condition:
        run.finding("KVM_BUG", site)
    return int(condition != 0)


def bug_on(run: KvmRun, site: Site, condition: int) -> None:
    """BUG_ON(condition): a finding if it holds, and the end of the step."""
    if condition:
        bug(run, site)


def bug(run: KvmRun, site: Site) -> None:
    """BUG(): a finding, and the end of the step."""
    run.finding("BUG", site)
    raise Bug
