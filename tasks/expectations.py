"""The data contract as Great Expectations suites, written as a function of params.yaml.

Two batches are judged. The log itself, by Spark: its columns, their types, the labels' domain and logic. And its
facts (:mod:`tasks.facts`), a table of one row and one column per fact: a fact is computed once, where an
expectation per column over the whole log would be hundreds of Spark jobs.

This is the only module that imports Great Expectations.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame

from ctrmodels.data import ROLES
from tasks.config import Data, Validate

os.environ["GX_ANALYTICS_ENABLED"] = "False"  # read when the library is imported
logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells hundreds of lines of itself

import great_expectations as gx  # noqa: E402
from great_expectations import expectations as gxe  # noqa: E402
from great_expectations.data_context.types.base import (  # noqa: E402
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.metadata_types import FailureSeverity  # noqa: E402

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RENDERED = re.compile(r"(\?d=)?\d{8}T\d{6}\.\d{6}Z(?!/)")
CRITICAL, WARNING, INFO = FailureSeverity.CRITICAL, FailureSeverity.WARNING, FailureSeverity.INFO
SYSTEM = {"_row": "LongType", "_role": "StringType", "_day": "StringType", "_time": "LongType",
          "_group": "StringType", "_position": "IntegerType", "_propensity": "DoubleType"}
# BASIC tells how many rows break a promise; 0 keeps it from quoting their values.
NO_VALUES = {"result_format": "BASIC", "partial_unexpected_count": 0}


@dataclass(frozen=True)
class Limit:
    """What a fact must be.

    Attributes:
        fact: its name.
        low, high: bounds, both allowed values; ``None`` = unbounded.
        severity: ``critical`` stops the run, ``warning`` and ``info`` go to the report.
        reason: what it means, in one sentence.
        key: the params key that sets the bound, or whose description the log then contradicts.
    """

    fact: str
    low: float | None
    high: float | None
    severity: FailureSeverity
    reason: str
    key: str


@dataclass(frozen=True)
class Verdict:
    """How one expectation ended.

    Attributes:
        name: of the fact, or of the check on the log itself.
        severity: as the suite set it.
        passed: whether the log keeps the promise.
        observed: the number found (rows that break the promise, or the fact), or a type's name.
        limit: what was expected, in words.
        reason: what the expectation means.
        key: the params key to look at.
    """

    name: str
    severity: str
    passed: bool
    observed: Any
    limit: str
    reason: str
    key: str


# --- suites -------------------------------------------------------------------------------------------


def log_suite(data: Data) -> gx.ExpectationSuite:
    """Expectations on the log: exact columns and types, labels' domain, a child's label implying its parent's."""
    types = columns(data)
    expectations: list[gxe.Expectation] = [gxe.ExpectTableColumnsToMatchSet(
        column_set=list(types), exact_match=True, severity=CRITICAL, **_about(
            "columns", "the columns", "The log has the declared columns and no other.", "data.fields"))]
    expectations += [gxe.ExpectColumnValuesToBeOfType(
        column=name, type_=kind, severity=CRITICAL, **_about(
            f"type.{name}", kind, f"Column {name} has the type that its description asks for.", "data.fields"))
        for name, kind in types.items()]
    for o in data.objectives:
        if o.kind == "binary":
            expectations.append(gxe.ExpectColumnValuesToBeInSet(
                column=o.name, value_set=[0, 1], severity=CRITICAL, **_about(
                    f"domain.{o.name}", "0 or 1", f"Every known label of {o.name} is 0 or 1.",
                    "data.objectives")))
        else:
            expectations.append(gxe.ExpectColumnValuesToBeBetween(
                column=o.name, min_value=0, severity=CRITICAL, **_about(
                    f"domain.{o.name}", "0 or more", f"Every known value of {o.name} is 0 or more, since no regression "
                    "target is defined below.", "data.objectives")))
        if o.after is not None:
            # Only the two labels are selected, since the rows that come back are kept in the results.
            expectations.append(gxe.UnexpectedRowsExpectation(
                unexpected_rows_query=f"SELECT `{o.name}`, `{o.after}` FROM {{batch}} "  # noqa: S608 - checked names
                                      f"WHERE `{o.name}` <> 0 AND `{o.after}` = 0",
                severity=CRITICAL if o.kind == "binary" else WARNING, **_about(
                    f"implies.{o.name}.{o.after}", "no row",
                    f"{o.name} happens only after {o.after}: no row has the first without the second.",
                    "data.objectives")))
    return gx.ExpectationSuite(name="log", expectations=expectations)


def columns(data: Data) -> dict[str, str]:
    """Column → Spark type of an ingested log."""
    kinds = {"categorical": "StringType", "numeric": "DoubleType", "sequence": "ArrayType"}
    labels = {"binary": "ByteType", "regression": "DoubleType"}
    return ({f.name: kinds[f.kind] for f in data.fields}
            | {o.name: labels[o.kind] for o in data.objectives} | SYSTEM)


def stored_as(data: Data) -> dict[str, str]:
    """The log's own columns that an ingested log has under a system name only: their name → that name."""
    named = {data.group: "_group", data.position: "_position", data.propensity: "_propensity", data.timestamp: "_time"}
    return {name: system for name, system in named.items() if name is not None and name not in columns(data)}


def limits(data: Data, validate: Validate) -> list[Limit]:
    """Every bound that the description and the section ``validate`` put on the facts."""
    found = [Limit(f"rows.{r}", 1, None, CRITICAL, f"The role {r} has rows.", "data.split") for r in ROLES]
    found.append(Limit("repeated.rows", None, 0, CRITICAL, "Every row is there once and in one role.",
                       "data.source"))
    if validate.keys:
        found.append(Limit("repeated.keys", None, 0, CRITICAL,
                           f"{', '.join(validate.keys)} together identify a row.", "validate.keys"))
    if data.split.by in ("time", "group_time"):
        found += [Limit(f"leakage.{r}", None, 0, CRITICAL,
                        f"No row of {r} is earlier than a row of the roles before it.", "data.split")
                  for r in ROLES[1:]]
    for f in data.fields:
        found += _field_limits(f.name, f.kind, f.of is None, validate)
    for o in data.objectives:
        found.append(Limit(f"known.{o.name}", 1, None, CRITICAL, f"Some label of {o.name} is known.",
                           "data.objectives"))
        if o.kind == "binary":
            low, high = validate.positive_rate
            found.append(Limit(f"positive_rate.{o.name}", low, high, CRITICAL,
                               f"The share of positives of {o.name} in its sample space is plausible.",
                               "validate.positive_rate"))
    found += [
        Limit("day_rows.fewest", 0.5, None, INFO, "No day has far fewer rows than the median day.", "data.source"),
        Limit("day_rows.most", None, 2, INFO, "No day has far more rows than the median day.", "data.source")]
    return found


def _field_limits(name: str, kind: str, counted: bool, validate: Validate) -> list[Limit]:
    found = []
    if kind != "sequence" or name in validate.null_rates:
        own = name in validate.null_rates
        found.append(Limit(f"null_rate.{name}", None,
                           validate.null_rates[name] if own else validate.max_null_rate, CRITICAL,
                           f"Enough rows have a value of {name}.",
                           "validate.null_rates" if own else "validate.max_null_rate"))
    if kind == "numeric":
        found.append(Limit(f"infinite.{name}", None, 0, CRITICAL, f"Every number of {name} is finite.",
                           "data.fields"))
    elif counted:
        found.append(Limit(f"distinct.{name}", 2, None, WARNING, f"{name} has more than one value on train.",
                           "data.fields"))
        found += [Limit(f"unseen.{role}.{name}", None, validate.max_unseen_rate, WARNING,
                        f"Train knows most of the values that {role} has of {name}.", "validate.max_unseen_rate")
                  for role in ROLES[1:]]
    if counted:
        warning, critical = validate.psi
        reason = f"{name} is distributed on every day much as on the reference day."
        found.append(Limit(f"psi.{name}", None, warning, WARNING, reason, "validate.psi"))
        if critical is not None:
            found.append(Limit(f"psi.{name}", None, critical, CRITICAL, reason, "validate.psi"))
    return found


def fact_suite(bounds: Sequence[Limit]) -> gx.ExpectationSuite:
    """Expectations on the table of facts."""
    return gx.ExpectationSuite(name="facts", expectations=[
        gxe.ExpectColumnMaxToBeBetween(
            column=b.fact, min_value=b.low, max_value=b.high, severity=b.severity,
            **_about(b.fact, in_words(b), b.reason, b.key))
        for b in bounds])


def in_words(bound: Limit) -> str:
    """The bound as a reader sees it."""
    parts = [f"at least {bound.low:g}" if bound.low is not None else "",
             f"at most {bound.high:g}" if bound.high is not None else ""]
    return " and ".join(filter(None, parts))


def _about(name: str, limit: str, reason: str, key: str) -> dict[str, Any]:
    return {"description": reason, "meta": {"name": name, "limit": limit, "key": key}}


# --- running ------------------------------------------------------------------------------------------


def judge(log: DataFrame, facts: Mapping[str, float], data: Data, bounds: Sequence[Limit], day: str,
          docs: Path) -> list[Verdict]:
    """Validate the log and its facts, and write the Data Docs.

    Args:
        log: the ingested log.
        facts: by name; every limit's fact is among them.
        data: the log's description.
        bounds: what the facts must be.
        day: the log's last day, by which the pages are dated, so that the same log gives the same pages.
        docs: folder for the Data Docs.
    """
    context = gx.get_context(mode="ephemeral", project_config=DataContextConfig(
        analytics_enabled=False, progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(), data_docs_sites={"docs": {
            "class_name": "SiteBuilder", "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}}}))
    run = gx.RunIdentifier(run_name="validate", run_time=_date(day))
    table = pd.DataFrame([dict(facts)])
    verdicts = []
    # persist=False: the library would cache the whole log otherwise.
    for source, suite, frame in ((context.data_sources.add_spark("log", persist=False), log_suite(data), log),
                                 (context.data_sources.add_pandas("facts"), fact_suite(bounds), table)):
        batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("whole")
        definition = context.validation_definitions.add(gx.ValidationDefinition(
            name=suite.name, data=batch, suite=context.suites.add(suite)))
        result = definition.run(batch_parameters={"dataframe": frame}, result_format=NO_VALUES, run_id=run)
        verdicts += [_verdict(r) for r in result.results]
    context.build_data_docs()
    _settle(docs)
    order = {name: i for i, name in enumerate(["columns", *(f"type.{c}" for c in columns(data))])}
    return sorted(verdicts, key=lambda v: order.get(v.name, len(order)))


def _date(day: str) -> datetime:
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)


def _verdict(result: Any) -> Verdict:
    raw = result.to_json_dict()
    about = raw["expectation_config"]["meta"]
    found = raw["result"]
    observed = found.get("unexpected_count", found.get("observed_value"))
    if isinstance(observed, list):
        mismatch = found.get("details", {}).get("mismatched", {})
        observed = "; ".join(f"{k} {', '.join(v)}" for k, v in sorted(mismatch.items())) or len(observed)
    if raw["exception_info"].get("raised_exception", True) and observed is None:
        observed = "could not be checked"
    if hasattr(observed, "item"):
        observed = observed.item()
    return Verdict(about["name"], raw["expectation_config"]["severity"], bool(raw["success"]), observed,
                   about["limit"], raw["expectation_config"]["description"], about["key"])


def _settle(docs: Path) -> None:
    """Take out of the pages what differs from run to run: random ids and the time of rendering."""
    for page in docs.rglob("*.html"):
        text = page.read_text()
        for i, found in enumerate(dict.fromkeys(UUID.findall(text))):
            text = text.replace(found, f"id-{i}")
        page.write_text(RENDERED.sub("", text))
