"""KTAP, JUnit, SARIF and b4: well-formed for any result at all, and undetermined passes in none of them."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iretrace.report.b4 import b4_refusal, b4_report
from iretrace.report.junit import junit_report
from iretrace.report.ktap import ktap_nothing, ktap_report
from iretrace.report.sarif import sarif_report
from iretrace.report.summary import Report
from iretrace.verdict import Result, Verdict
from tests.report.samples import ANY_RESULTS, HOSTILE, LASSO, RESULTS, TEXTS, result

REPORTS = st.builds(Report, st.lists(ANY_RESULTS, max_size=3), remarks=st.lists(TEXTS, max_size=2))
SAMPLE = Report(RESULTS, remarks=["a.patch: Documentation/x.rst: hunk 1 not looked at: not modelled"])
KTAP_LINE = re.compile(
    r"KTAP version 1|1\.\.\d+( # SKIP .+)?|(not )?ok \d+ [^#]*( # (undetermined|known as [^#]*))?|#( .*)?"
)


# KTAP. ----------------------------------------------------------------------------------------------------------------


def test_ktap_has_a_subtest_for_each_kernel() -> None:
    lines = ktap_report(SAMPLE).splitlines()
    told = [line for line in lines if not re.match(r" *# [^S]", line)]
    assert told == [
        "KTAP version 1",
        "1..2",
        "  KTAP version 1",
        "  # Subtest: Linux 6.1.192",
        "  1..7",
        "  ok 1 nmi-complete-last.sev-es.tickless",
        "  not ok 2 nmi-complete-then-spin.sev-es.tickless",
        "  ok 3 nmi-complete-then-spin.sev-es.ticking",
        "  not ok 4 nmi-in-sti-shadow.sev-es.tickless # known as sti-shadow-sev-es",
        "  not ok 5 three-nmis.sev-es.tickless # undetermined",
        "  not ok 6 nmi-at-hlt.sev-es.tickless # undetermined",
        "  not ok 7 vc-inside-nmi.sev-es.tickless # undetermined",
        "not ok 1 Linux 6.1.192",
        "  KTAP version 1",
        "  # Subtest: Linux 6.12.117",
        "  1..1",
        "  ok 1 nmi-complete-then-spin.sev-es.tickless",
        "ok 2 Linux 6.12.117",
    ]
    assert lines[-1] == "# 1 new, 1 known, 3 undetermined, 3 hold"
    assert "  # iretrace: warning: [three-nmis] undetermined: stopped by --max-states" in ktap_report(SAMPLE)


def test_ktap_skips_what_is_not_in_scope() -> None:
    assert ktap_nothing(HOSTILE).startswith("KTAP version 1\n1..0 # SKIP evil\\x1b[2J")


@settings(max_examples=25)
@given(REPORTS)
def test_every_ktap_line_is_one_whatever_the_results(report: Report) -> None:
    text = ktap_report(report)
    assert text.isascii()
    for line in text.split("\n")[:-1]:
        assert line.isprintable()
        assert KTAP_LINE.fullmatch(line.strip())
    oks = [line for line in text.splitlines() if line.startswith("  ok ")]
    assert len(oks) == sum(result.verdict is Verdict.HOLDS for result in report.results)


# JUnit. ---------------------------------------------------------------------------------------------------------------


def test_junit_tells_violations_as_failures_and_undetermined_as_errors() -> None:
    root = ElementTree.fromstring(junit_report(SAMPLE))
    assert root.attrib == {"name": "iretrace", "tests": "8", "failures": "2", "errors": "3"}
    first, second = root.findall("testsuite")
    assert first.attrib == {"name": "Linux 6.1.192", "tests": "7", "failures": "2", "errors": "3"}
    outcomes = [(case.get("name"), [child.tag for child in case]) for case in first.findall("testcase")]
    assert outcomes[:5] == [
        ("nmi-complete-last", []),
        ("nmi-complete-then-spin", ["failure"]),
        ("nmi-complete-then-spin", []),
        ("nmi-in-sti-shadow", ["failure"]),
        ("three-nmis", ["error"]),
    ]
    assert "skipped" not in junit_report(SAMPLE)
    assert "hunk 1 not looked at" in (second.findtext("system-out") or "")


@settings(max_examples=25)
@given(REPORTS)
def test_junit_is_xml_whatever_the_results(report: Report) -> None:
    text = junit_report(report)
    assert text.isascii()
    root = ElementTree.fromstring(text)
    assert len(list(root.iter("testcase"))) == len(report.results)
    failed = [case for case in root.iter("testcase") if len(case)]
    assert len(failed) == sum(result.verdict is not Verdict.HOLDS for result in report.results)


# SARIF. ---------------------------------------------------------------------------------------------------------------


def sarif(report: Report) -> Any:
    return json.loads(sarif_report(report, "1.0", {"three-nmis": "About\n three."}))


def check_location(location: Any) -> None:
    """What SARIF 2.1.0 asks of a location, as far as we write it."""
    assert set(location) <= {"physicalLocation", "logicalLocations", "message"}
    if "physicalLocation" in location:
        artifact = location["physicalLocation"]["artifactLocation"]
        assert re.fullmatch(r"[A-Za-z0-9_.~/%-]*", artifact["uri"])
        assert artifact["uriBaseId"] == "SRCROOT"
        assert location["physicalLocation"].get("region", {"startLine": 1})["startLine"] >= 1


def check_sarif(document: Any) -> None:
    """The structure of SARIF 2.1.0, as far as we use it."""
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(ids) == len(set(ids))
    for found in run["results"]:
        assert ids[found["ruleIndex"]] == found["ruleId"]
        assert found["level"] in ("error", "warning")
        assert found["message"]["text"]
        assert all(isinstance(value, str) for value in found["partialFingerprints"].values())
        for location in found["locations"]:
            check_location(location)
        for flow in found.get("codeFlows", ()):
            assert flow["threadFlows"]
            actors = [thread["id"] for thread in flow["threadFlows"]]
            assert len(actors) == len(set(actors))
            steps = [step for thread in flow["threadFlows"] for step in thread["locations"]]
            assert all(thread["locations"] for thread in flow["threadFlows"])
            assert sorted(step["executionOrder"] for step in steps) == list(range(1, len(steps) + 1))
            for step in steps:
                assert step["importance"] in ("important", "essential", "unimportant")
                assert all(set(value) == {"text"} for value in step["state"].values())
                check_location(step["location"])


def test_sarif_lists_what_does_not_hold() -> None:
    document = sarif(SAMPLE)
    check_sarif(document)
    (run,) = document["runs"]
    assert [(found["ruleId"], found["level"]) for found in run["results"]] == [
        ("nmi-complete-then-spin", "error"),
        ("nmi-in-sti-shadow", "error"),
        ("three-nmis", "warning"),
        ("nmi-at-hlt", "warning"),
        ("vc-inside-nmi", "warning"),
    ]
    assert run["results"][1]["properties"]["known"] == "sti-shadow-sev-es"
    assert run["tool"]["driver"]["rules"][2]["shortDescription"]["text"] == "About three."
    said = [note["message"]["text"] for note in run["invocations"][0]["toolExecutionNotifications"]]
    assert said[0].endswith("hunk 1 not looked at: not modelled")
    assert said[-1] == "1 new, 1 known, 3 undetermined, 3 hold"


def test_a_counterexample_is_a_code_flow_with_a_thread_flow_for_each_actor() -> None:
    (found,) = sarif(Report([result("t", Verdict.VIOLATED, trace=LASSO)]))["runs"][0]["results"]
    (flow,) = found["codeFlows"]
    assert [thread["id"] for thread in flow["threadFlows"]] == ["KVM", "guest", "outside", "cpu"]
    last = flow["threadFlows"][1]["locations"][-1]
    assert last["location"]["message"]["text"].startswith("step 17, for ever: spins at main [spin] (tickless host")
    where = found["locations"][0]["physicalLocation"]
    assert (where["artifactLocation"]["uri"], where["region"]["startLine"]) == ("arch/x86/kvm/x86.c", 10070)


def test_a_place_in_a_reason_is_a_location() -> None:
    (found,) = sarif(Report([result("t", Verdict.UNDETERMINED, reason="a/b.c:12: f() is unknown\nrow")]))["runs"][0][
        "results"
    ]
    assert found["locations"][0]["physicalLocation"]["region"] == {"startLine": 12}
    assert found["message"]["text"].startswith("undetermined: f() is unknown (")


def fingerprints(*results: Result) -> set[str]:
    found = sarif(Report(results))["runs"][0]["results"]
    return {value for one in found for value in one["partialFingerprints"].values()}


def test_a_fingerprint_stays_when_lines_move_and_versions_change() -> None:
    here = result("t", Verdict.UNDETERMINED, reason="a/b.c:12: f() is unknown")
    there = result("t", Verdict.UNDETERMINED, reason="a/b.c:99: f() is unknown", hypervisor="Linux 6.1.193")
    assert len(fingerprints(here, there)) == 1
    other = result("t", Verdict.UNDETERMINED, reason="a/b.c:12: g() is unknown")
    assert len(fingerprints(here, other, result("u", Verdict.UNDETERMINED, reason=here.reason))) == 3


@settings(max_examples=25)
@given(REPORTS)
def test_sarif_has_its_structure_whatever_the_results(report: Report) -> None:
    text = sarif_report(report, "1.0", {})
    assert text.isascii()
    check_sarif(json.loads(text))


def test_a_hostile_path_is_a_quoted_address() -> None:
    (found,) = sarif(Report([result("t", Verdict.UNDETERMINED, reason="a b.c:1: x")]))["runs"][0]["results"]
    assert found["locations"] == []
    cited = LASSO.cited
    assert cited is not None
    trace = LASSO.__class__((), (), "cause", cited.__class__(HOSTILE, 3))
    (found,) = sarif(Report([result("t", Verdict.VIOLATED, trace=trace)]))["runs"][0]["results"]
    assert unquote(found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]) == HOSTILE


# b4. ------------------------------------------------------------------------------------------------------------------


def test_b4_gets_one_entry_with_everything_as_it_keeps_no_more() -> None:
    (entry,) = json.loads(b4_report(SAMPLE))
    assert entry["status"] == "fail"
    assert entry["summary"].startswith("arch/x86/kvm/x86.c:10070: error: [nmi-complete-then-spin] ")
    assert entry["summary"].endswith(" (and 1 more)")
    assert "step 17, for ever: guest: spins" in entry["details"]
    assert entry["details"].count(": error: ") == 2
    assert entry["details"].count(": warning: ") == 3
    assert entry["details"].endswith("\n1 new, 1 known, 3 undetermined, 3 hold")


def test_b4_is_warned_of_what_is_undetermined() -> None:
    (entry,) = json.loads(b4_report(Report([one for one in RESULTS if one.verdict is not Verdict.VIOLATED])))
    assert (entry["status"], entry["summary"]) == ("warn", "3 tests are undetermined")


def test_b4_passes_only_when_everything_holds() -> None:
    (entry,) = json.loads(b4_report(Report([result("t", Verdict.HOLDS)])))
    assert (entry["status"], entry["summary"]) == ("pass", "0 new, 0 known, 0 undetermined, 1 hold")
    assert json.loads(b4_report(Report([]))) == []


def test_b4_is_warned_of_what_could_not_be_judged() -> None:
    (entry,) = json.loads(b4_refusal(HOSTILE))
    assert entry["status"] == "warn"
    assert entry["summary"].isprintable()


@pytest.mark.parametrize("verdict", [Verdict.VIOLATED, Verdict.UNDETERMINED])
def test_b4_never_passes_what_does_not_hold(verdict: Verdict) -> None:
    statuses = {entry["status"] for entry in json.loads(b4_report(Report([result("t", verdict)])))}
    assert statuses == {"fail" if verdict is Verdict.VIOLATED else "warn"}


@settings(max_examples=25)
@given(REPORTS)
def test_b4_entries_are_strings_whatever_the_results(report: Report) -> None:
    text = b4_report(report)
    assert text.isascii()
    entries = json.loads(text)
    assert len(entries) == (1 if report.results else 0)
    for entry in entries:
        assert list(entry) == ["tool", "status", "summary", "url", "details"]
        assert entry["status"] in ("pass", "warn", "fail")
        assert all(value.replace("\n", "").isprintable() or not value for value in entry.values())
