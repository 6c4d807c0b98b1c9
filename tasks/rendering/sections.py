"""The report's sections: which stage is told where, and the tables made from several stages at once."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.rendering import flow, glossary, numbers, verdict
from tasks.rendering.evidence import Evidence, StageResult
from tasks.rendering.page import (
    Block,
    Cell,
    Flow,
    Heading,
    Numbers,
    Row,
    Section,
    Span,
    Table,
    Terms,
    Text,
    in_rows,
    show,
    tabulate,
)

PACKAGES = ("ctrmodels", "torch", "numpy", "scipy", "scikit-learn", "pyarrow", "pyspark", "great-expectations",
            "optuna", "apache-airflow", "dvc", "wandb")
COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "parameters", numbers.short),
    ("parameters_embedding", "of these embedding", numbers.short),
    ("flops", "FLOPs per row", numbers.short),
    ("bytes", "bytes", numbers.size),
)


def build(evidence: Evidence) -> list[Section]:
    """All sections in the order of the chain."""
    return [
        Section("flow", "The run", [_flow(evidence)]),
        Section("data", "Data", [_roles(evidence), *_told(evidence, "ingest", "frequency", "encode")]),
        Section("validation", "Validation", _told(evidence, "validate")),
        _search(evidence, "embedding", "Embedding search",
                "How many dimensions each field, or each value, gets."),
        _search(evidence, "interaction", "Interaction search",
                "Which pairs of fields the model multiplies, on the chosen embedding."),
        _models(evidence),
        _fusion(evidence),
        Section("lineage", "Lineage", _lineage(evidence)),
        Section("glossary", "Glossary", [Terms(glossary.TERMS)]),
    ]


def _told(evidence: Evidence, *names: str, headings: bool | None = None) -> list[Block]:
    """Figures and numbers of stages, under a heading each if there are several."""
    results = [r for name in names for r in evidence.of(name)]
    blocks: list[Block] = []
    for result in results:
        if headings if headings is not None else len(results) > 1:
            blocks.append(Heading(result.title))
        shown = [show(figure, result.title) for figure in result.figures]
        blocks += in_rows(sorted(shown, key=lambda block: isinstance(block, Table)))
        if not shown:
            blocks.append(Text(f"{result.title} recorded no figure.", quiet=True))
        blocks.append(_numbers(result))
    return blocks


def _numbers(result: StageResult) -> Numbers:
    values = [(name, numbers.plain(value)) for name, value in sorted(result.metrics.items())]
    return Numbers(f"All numbers of {result.title}", values)


def _flow(evidence: Evidence) -> Flow:
    winners = {evidence.methods.get(name, "") for name in
               (verdict.chosen(evidence.boards[b])["candidate"] for b in ("select_embedding", "select_interaction"))}
    winners.add(f"retrain@{verdict.chosen(evidence.boards['select_model'])['candidate']}")
    nodes, told = [], []
    for stage in evidence.graph:
        results = evidence.of(stage.name)
        keyed = [r for r in results if r.key is not None]
        took = [r.measured("seconds") for r in results]
        known = [s for s in took if s is not None]
        note = "this page" if stage.name == "report" else numbers.seconds(sum(known)) if known else "not measured"
        reused = [r for r in results if _reused(evidence, r)]
        if reused and len(reused) == len(results):
            note += ", reused"
        keys = tuple((str(r.key), numbers.seconds(r.measured("seconds")), r.title in winners) for r in keyed)
        nodes.append(flow.Node(stage.name, stage.group, stage.upstream, note, keys, bool(note.endswith("reused"))))
        told.append(f"{stage.name} ({note})")
    return Flow(flow.draw(nodes), "Stages in order: " + ", ".join(told) + ".")


def _reused(evidence: Evidence, result: StageResult) -> bool:
    return result.record.get("run_id", evidence.run_id) != evidence.run_id


def _roles(evidence: Evidence) -> Table:
    """Rows and positive rate of every role."""
    metrics = evidence.results["ingest"].metrics
    total = metrics.get("rows") or 0
    objectives = [o.name for o in evidence.params.data.objectives if o.kind == "binary"]
    rows = []
    for role in ("train", "arch", "valid", "test"):
        count = metrics.get(f"rows.{role}")
        rates = [metrics.get(f"positive_rate.{o}.{role}") for o in objectives]
        rows.append(Row([Cell(role), Cell(numbers.count(count), number=True),
                         Cell(numbers.share(count / total if count is not None and total else None), number=True),
                         *(Cell(numbers.share(rate), number=True) for rate in rates)]))
    rows.append(Row([Cell("all"), Cell(numbers.count(total), number=True), Cell(numbers.share(1.0), number=True),
                     *(Cell(numbers.share(metrics.get(f"positive_rate.{o}")), number=True) for o in objectives)]))
    return Table("Rows by role, and the share of positives among known labels", [
        "role", "rows", "share", *(f"positive, {o}" for o in objectives)], rows)


def _search(evidence: Evidence, subject: str, title: str, lead: str) -> Section:
    select, search = f"select_{subject}", f"search_{subject}"
    return Section(search, title, [
        Text(lead), leaderboard(evidence, select), Text(_rule(evidence.boards[select]), quiet=True),
        _cost(evidence, search), *_told(evidence, select, headings=False), *_told(evidence, search, headings=True)])


def _models(evidence: Evidence) -> Section:
    board = evidence.boards["select_model"]
    return Section("models", "Models", [
        Text("One model for all objectives, trained from scratch on the chosen architecture."),
        leaderboard(evidence, "select_model"), Text(_rule(board), quiet=True),
        *(Text(note, quiet=True) for note in board["notes"]),
        *_told(evidence, "select_model", headings=False), *_told(evidence, "retrain", headings=True)])


def _rule(board: Mapping[str, Any]) -> str:
    return f"Rule: {board['rule']}. Choice: {board['reason']}."


def leaderboard(evidence: Evidence, stage: str) -> Table:
    """A leaderboard as a table: mean ± sd on one scale, the distance to the control, and what each costs."""
    board = evidence.boards[stage]
    rows, base = board["rows"], verdict.control(board)
    low = min(r["valid"] - r["valid_sd"] for r in rows)
    high = max(r["valid"] + r["valid_sd"] for r in rows)
    extra = _objective_columns(rows, board["metric"])
    costs = [c for c in COSTS if any(c[0] in r for r in rows)]
    kinds = len({r["kind"] for r in rows}) > 1
    columns = ["candidate", *(["kind"] if kinds else []), f"valid {board['metric']}", "mean \N{PLUS-MINUS SIGN} sd",
               *(["to control"] if base else []), *(name for _, name in extra), *(label for _, label, _ in costs)]
    table = []
    for r in rows:
        cells = [Cell(r["candidate"])]
        if kinds:
            cells.append(Cell(r["kind"], badge="note" if r["kind"] == "searched" else "dim"))
        cells += [Cell(numbers.spread(r["valid"], r["valid_sd"]), number=True),
                  Cell("", span=Span(r["valid"], r["valid_sd"], low, high))]
        if base:
            cells.append(Cell(numbers.UNKNOWN if r is base else numbers.difference(r["valid"] - base["valid"]),
                              number=True))
        cells += [Cell(numbers.metric(r.get(key)), number=True) for key, _ in extra]
        cells += [Cell(form(r.get(key)), number=True) for key, _, form in costs]
        table.append(Row(cells, marked=bool(r["chosen"])))
    return Table(f"Candidates, best first, {_seeds(rows)}; the chosen one is marked", columns, table)


def _seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({len(r["seeds"]) if isinstance(r["seeds"], list) else int(r["seeds"]) for r in rows})
    seeds = " or ".join(map(str, counts))
    return f"{seeds} seed{'' if counts == [1] else 's'} each"


def _objective_columns(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[str, str]]:
    """Columns for the parts of the deciding metric, such as its value for each objective and space."""
    prefix = f"valid.{metric}."
    names = dict.fromkeys(k for r in rows for k in r if k.startswith(prefix) and not k.endswith(".sd"))
    return [(name, name.removeprefix(prefix)) for name in names]


def _cost(evidence: Evidence, search: str) -> Table:
    """What each search took on this machine, also in plain trainings of the unsearched control."""
    results = evidence.of(search)
    seeds = getattr(evidence.params, search).seeds
    controls = {evidence.methods[r["candidate"]] for r in evidence.boards[f"select_{search.removeprefix('search_')}"]
                ["rows"] if r["kind"] == "control"}
    plain = next((r.measured("seconds.retrain") for r in results if r.title in controls), None)
    rows = []
    for result in results:
        seconds = result.measured("seconds.search")
        ratio = seconds / plain if seconds is not None and plain and result.title not in controls else None
        rows.append(Row([
            Cell(str(result.key)),
            Cell(numbers.seconds(seconds / seeds if seconds is not None else None), number=True),
            Cell(numbers.UNKNOWN if ratio is None else f"{ratio:.2g} {numbers.TIMES}", number=True),
            Cell(numbers.seconds(result.measured("seconds")), number=True),
            Cell(numbers.size((result.measured("peak_memory_mb") or float("nan")) * 2**20), number=True)]))
    return Table("Time on the machine that ran it; a search next to one plain training of the control",
                 ["method", "one search", "in plain trainings", "whole stage, all seeds", "peak memory"], rows)


def _fusion(evidence: Evidence) -> Section:
    return Section("fusion", "Fusion", [
        Text(verdict.full_stop(evidence.fusion["reason"])),
        Text(f"Rule: {evidence.fusion['rule']}. It was tuned on one window of valid and judged on another; test was "
             "read once.", quiet=True),
        *_told(evidence, "tune_fusion", headings=False)])


def _lineage(evidence: Evidence) -> list[Block]:
    rows = []
    for result in evidence.results.values():
        record = result.record
        run = record.get("wandb", {})
        rows.append(Row([
            Cell(result.title), Cell(numbers.seconds(result.measured("seconds")), number=True),
            Cell(f"{record.get('run_id', numbers.UNKNOWN)}"
                 + (" (reused)" if _reused(evidence, result) else "")),
            Cell((record.get("revision") or numbers.UNKNOWN)[:12]), Cell((result.digest or numbers.UNKNOWN)[:12]),
            Cell((record.get("manifest") or numbers.UNKNOWN)[:12]), Cell(run.get("id", numbers.UNKNOWN)),
            Cell(run.get("mode") or numbers.UNKNOWN, badge="note" if run.get("mode") == "online" else "dim")]))
    airflow = next((r.record["airflow"] for r in evidence.results.values() if r.record.get("airflow")), None)
    facts: list[list[Any]] = [
        ["run", evidence.run_id], ["Git revision", evidence.revision],
        ["Airflow DAG and run", f"{airflow['dag_id']}, {airflow['run_id']}" if airflow else "not run by Airflow"]]
    return [
        tabulate("This report", ["", "value"], facts),
        Table("Where each result comes from (hashes cut to twelve digits)",
              ["stage", "time", "run", "revision", "DVC hash", "manifest", "W&B run", "W&B"], rows),
        tabulate("Versions on the machine that wrote this page", ["package", "version"], _versions()),
    ]


def _versions() -> list[list[str]]:
    found = [["python", platform.python_version()]]
    for name in PACKAGES:
        try:
            found.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            found.append([name, "not installed"])
    return found
