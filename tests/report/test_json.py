"""`--format json`: valid by its schema for any result at all, and the same bytes for the same results."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from iretrace.report.as_json import SCHEMA, json_report
from iretrace.report.summary import Report
from iretrace.verdict import Result, Verdict
from tests.report.samples import ANY_RESULTS, RESULTS

TEXT = (resources.files("iretrace.report") / "iretrace.schema.json").read_text("utf-8")
VALIDATOR = Draft202012Validator(json.loads(TEXT))
DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "json.md").read_text("utf-8")


def made() -> Any:
    return json.loads(json_report(Report(RESULTS), "1.0"))


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(TEXT))


def test_the_samples_are_valid() -> None:
    VALIDATOR.validate(made())


@settings(max_examples=60)
@given(st.lists(ANY_RESULTS, max_size=3))
def test_any_result_is_valid_and_ascii(results: list[Result]) -> None:
    text = json_report(Report(results), "1.0")
    assert text.isascii()
    VALIDATOR.validate(json.loads(text))


def test_a_verdict_that_does_not_exist_is_not_valid() -> None:
    document = made()
    document["results"][0]["verdict"] = "passes"
    with pytest.raises(ValidationError):
        VALIDATOR.validate(document)


def test_the_schema_names_every_field_that_is_written() -> None:
    definitions = json.loads(TEXT)["$defs"]
    document = made()
    violated = next(result for result in document["results"] if result["trace"])
    step = violated["trace"]["stem"][0]
    for name, written in (
        ("result", violated),
        ("trace", violated["trace"]),
        ("step", step),
        ("line", violated["trace"]["cited"]),
        ("assumption", violated["ledger"]["assumptions"][0]),
    ):
        assert list(definitions[name]["properties"]) == list(written), name
        assert set(definitions[name]["required"]) == set(written), name
        assert all(f"`{field}`" in DOCUMENTATION for field in written), name


def test_the_version_of_the_schema_is_the_same_everywhere() -> None:
    assert json.loads(TEXT)["properties"]["schema"]["const"] == SCHEMA
    assert f"`schema` is `{SCHEMA}`" in DOCUMENTATION


def test_the_time_that_it_took_is_not_in_it() -> None:
    quick = Result("t", "plain", "tickless", "h", Verdict.HOLDS, "all", seconds=0.1)
    slow = Result("t", "plain", "tickless", "h", Verdict.HOLDS, "all", seconds=99.0)
    assert json_report(Report([quick]), "1.0") == json_report(Report([slow]), "1.0")


def test_what_is_not_shown_is_counted() -> None:
    summary = json.loads(json_report(Report(RESULTS[:2], hidden=1), "1.0"))["summary"]
    left_out = {"not_shown": 1, "not_touched": 0, "as_before": 0}
    assert summary == {"new": 1, "known": 1, "undetermined": 0, "holds": 1} | left_out
