"""One self-contained HTML page of what was tried, what won, and why.

Reads what the other stages recorded and decides nothing. ``report.html`` opens from disk without a network;
``summary.json`` has the verdict for other readers (the command line, the W&B report).
"""

from __future__ import annotations

import json
from typing import Any

from tasks.rendering import evidence, numbers, page, sections, verdict
from tasks.runtime import tracking
from tasks.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """Write the page and its summary."""
    for name in ("select_embedding", "select_interaction", "select_model", "tune_fusion"):
        stage.input(name)
    params = stage.params
    for name, keys in (("search_embedding", params.search_embedding.methods),
                       ("search_interaction", params.search_interaction.methods),
                       ("retrain", params.retrain.models)):
        for key in keys:
            stage.input(name, key)
    found = evidence.read(stage.root, params, tracking.run_id(), tracking.revision(stage.root))
    html = page.render(compose(found))
    (stage.out / "report.html").write_text(html, encoding="utf-8")
    (stage.out / "summary.json").write_text(json.dumps(summary(found), indent=1, sort_keys=True) + "\n")
    stage.metric("figures", sum(len(r.figures) for r in found.results.values()))
    stage.metric("stages", len(found.results))


def compose(found: evidence.Evidence) -> page.Page:
    """The whole page."""
    data, ingested = found.params.data, found.results["ingest"].metrics
    objectives = ", ".join(o.name if o.after is None else f"{o.name} (after {o.after})" for o in data.objectives)
    return page.Page(
        title=found.params.report.title,
        subtitle=f"{numbers.count(ingested.get('rows'))} rows over {numbers.count(ingested.get('days'))} days from "
                 f"the source {data.source}; {len(data.fields)} fields; objectives {objectives}",
        facts=[("Run", found.run_id), ("Revision", (found.revision or numbers.UNKNOWN)[:12])],
        verdict=verdict.sentences(found), tiles=verdict.tiles(found), sections=sections.build(found))


def summary(found: evidence.Evidence) -> dict[str, Any]:
    """The verdict, the leaderboards as text, and the metrics that W&B may compare between models."""
    boards = {title: sections.leaderboard(found, name) for title, name in (
        ("Embedding search", "select_embedding"), ("Interaction search", "select_interaction"),
        ("Models", "select_model"))}
    return {
        "title": found.params.report.title, "verdict": verdict.sentences(found),
        "leaderboards": {title: as_text(board) for title, board in boards.items()},
        "metrics": [f"valid.auc.{o.name}@all" for o in found.params.data.objectives if o.kind == "binary"],
    }


def as_text(table: page.Table) -> list[list[str]]:
    """Head and rows as texts, without the drawn column; the chosen candidate has a tick."""
    drawn = {i for row in table.rows for i, cell in enumerate(row.cells) if cell.span}
    rows = [[f"{cell.text} \N{CHECK MARK}" if row.marked and i == 0 else cell.text
             for i, cell in enumerate(row.cells) if i not in drawn] for row in table.rows]
    return [[name for i, name in enumerate(table.columns) if i not in drawn], *rows]


if __name__ == "__main__":
    main("report", run)
