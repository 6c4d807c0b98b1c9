"""Stage ``validate``: hold the log against its contract; a critical break stops the run.

Writes ``results.json`` (every expectation with what was observed), ``drift.parquet`` (stability index by field
and day, on a log of several days) and ``data_docs/`` (the same results as Great Expectations' pages). None of
them quotes a value of the log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from ctrmodels.errors import DataContractError, InputError
from tasks import counts, expectations, facts
from tasks.config import Data, Validate
from tasks.expectations import Limit, Verdict
from tasks.runtime import spark
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main

log = logging.getLogger("ctrmodels")


def run(stage: Stage) -> None:
    """Measure the facts, judge them, and stop on a critical break."""
    data, validate = stage.params.data, stage.params.validate_
    ingested, counted = stage.input("ingest") / "log", stage.input("frequency")
    summary = json.loads((counted / "summary.json").read_text())
    moments = pd.read_parquet(counted / "moments.parquet")
    _check_keys(data, validate)
    reference = facts.reference_day(summary, moments, data, validate.reference_day)
    with spark.session("validate", stage.params.ingest.partitions, spark.folder_bytes(ingested)) as session:
        rows = session.read.parquet(counts.uri(ingested))
        with stage.timed("facts"):
            table = counts.read(session, counted / "counts", counts.Plan.of(data).binary)
            found = facts.of_summary(data, summary, moments) | _facts_of_rows(rows, data, validate)
            found |= facts.unseen(table)
            drifted = (facts.of_drift(table, rows, data, np.load(counted / "quantiles.npy"), reference)
                       if reference is not None else facts.drift(pd.DataFrame(columns=["field", "day"]), ""))
            worst = facts.worst_day(drifted)
            found |= {f"psi.{row.field}": float(row.psi) for row in worst.itertuples()}
        bounds = expectations.limits(data, validate)
        with stage.timed("expectations"):
            verdicts = expectations.judge(rows, found, data, [b for b in bounds if b.fact in found],
                                          summary["days"][-1], stage.out / "data_docs")
    unchecked = [b for b in bounds if b.fact not in found]
    _stop_or_warn(verdicts, str(ingested))
    _write(stage, verdicts, unchecked)
    drifted.to_parquet(stage.out / "drift.parquet", index=False)
    _record(stage, verdicts, unchecked, found)
    if reference is not None and len(worst):
        stage.figure(_drift_figure(worst, reference, validate))


def _check_keys(data: Data, validate: Validate) -> None:
    """Refuse keys and overrides that name no column, before any work."""
    names = (*expectations.columns(data), *expectations.stored_as(data))
    for key, given in (("keys", validate.keys), ("null_rates", tuple(validate.null_rates))):
        for name in given:
            if name not in names:
                raise InputError("params.yaml", f"validate.{key}", name, "no field has this name",
                                 f"use some of {', '.join(names)}")


def _facts_of_rows(rows: DataFrame, data: Data, validate: Validate) -> dict[str, float]:
    found: dict[str, float] = {"repeated.rows": facts.repeated(rows, ["_row"])}
    if validate.keys:
        names = expectations.stored_as(data)
        found["repeated.keys"] = facts.repeated(rows, [names.get(key, key) for key in validate.keys])
    if data.split.by in ("time", "group_time"):
        found |= facts.leakage(rows, data.split.by == "group_time")
    return found


def _stop_or_warn(verdicts: list[Verdict], where: str) -> None:
    """Say every broken promise, and stop if one is critical.

    Raises:
        DataContractError: naming the first critical one and the number observed.
    """
    broken = [v for v in verdicts if not v.passed]
    for v in broken:
        log.warning("%s: %s = %s, expected %s (%s)", v.severity, v.name, _shown(v.observed), v.limit, v.reason)
    critical = [v for v in broken if v.severity == "critical"]
    if critical:
        first = critical[0]
        others = f" (and {len(critical) - 1} more, listed above)" if len(critical) > 1 else ""
        raise DataContractError(where, first.name, first.observed, f"expected {first.limit}{others}",
                                f"mend the log, or change {first.key} in params.yaml")


def _write(stage: Stage, verdicts: list[Verdict], unchecked: list[Limit]) -> None:
    results = {"expectations": [asdict(v) for v in verdicts],
               "not_applicable": sorted({b.fact for b in unchecked})}
    (stage.out / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def _record(stage: Stage, verdicts: list[Verdict], unchecked: list[Limit], found: dict[str, float]) -> None:
    stage.metric("expectations", len(verdicts))
    stage.metric("passed", sum(v.passed for v in verdicts))
    for severity in ("warning", "info"):
        stage.metric(f"broken.{severity}", sum(not v.passed and v.severity == severity for v in verdicts))
    stage.metrics({name: value for name, value in found.items()
                   if name.split(".")[0] in ("psi", "unseen", "repeated", "leakage", "positive_rate")})
    values: list[list[Any]] = [
        [v.name, v.severity, _shown(v.observed), v.limit, "passed" if v.passed else "broken", v.reason]
        for v in sorted(verdicts, key=lambda v: v.passed)]
    values += [[b.fact, b.severity.value, None, expectations.in_words(b), "not applicable", b.reason]
               for b in unchecked]
    stage.figure(Figure(
        "expectations", "The data contract", "table",
        "What the log's description promises and what was found. A broken critical promise stops the run, so "
        "the broken ones here are warnings.",
        columns=["expectation", "severity", "observed", "expected", "outcome", "meaning"], values=values))


def _drift_figure(worst: pd.DataFrame, reference: str, validate: Validate) -> Figure:
    return Figure(
        "drift", "Drift by field", "bar",
        f"Population stability index of each field on its most different day, against {reference}; days of "
        f"fewer than {facts.DAY_DRAWS} rows (for fields of users: groups) are left out. "
        f"Above {validate.psi[0]:g} it is reported.",
        Axis("field"), Axis("stability index"),
        [Series("largest index", worst["field"].tolist(), worst["psi"].tolist())])


def _shown(observed: Any) -> Any:
    return round(observed, 6) if isinstance(observed, float) else observed


if __name__ == "__main__":
    main("validate", run)
