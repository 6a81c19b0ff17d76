"""On real trees what handles NMIs, event requests or SVM's event fields runs from source, or is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iretrace.linux.models.table import MODELS
from iretrace.linux.rules import load_rules
from iretrace.linux.tree import open_tree
from tests.trees.edits import SEV, SVM, X86

pytestmark = pytest.mark.trees

EVENT_NAMES = """
    event_inj exit_int_info nmi_pending nmi_queued nmi_injected nmi_singlestep int_state KVM_REQ_NMI KVM_REQ_EVENT
""".split()

PRINTS = {"dump_vmcb"}
"""Reads the fields only to print them."""

_FUNCTION = re.compile(r"^[a-z][\w \t*]*\b(\w+)\([^;{]*\)\n\{(.*?)^\}", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("series", ["tree_6_1", "tree_6_12", "tree_7_3"])
def test_no_rule_answers_for_what_handles_events(series: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(series)
    tree = open_tree(path)
    rules = load_rules(tree.version, [], MODELS)
    found = {
        name
        for file in (SVM, SEV, X86)
        for name, body in _FUNCTION.findall(tree.text(file) or "")
        if "nmi" in name or any(event in body for event in EVENT_NAMES)
    }
    assert len(found) > 25
    answers = {name: rules.rows[("function", name)].what for name in found if ("function", name) in rules.rows}
    assert {name for name, what in answers.items() if what not in ("refuse", "source")} <= PRINTS
