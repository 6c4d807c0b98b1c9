"""The report's short form as a W&B report. Needs a login: even building one asks the server."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr


def save(entity: str, project: str, run_id: str, summary: dict[str, Any]) -> str:
    """Build the W&B report of one run of the chain and save it; returns its page.

    Args:
        entity: user or team that owns the project.
        project: the W&B project.
        run_id: the group of the runs to show.
        summary: what the report stage wrote to ``summary.json``: ``title``, ``verdict`` (sentences),
            ``leaderboards`` (heading → rows of texts, the first being the head) and ``metrics`` (to compare
            the models by).
    """
    report = wr.Report(entity=entity, project=project, title=f"{summary['title']}: {run_id}",
                       description="What was searched, what won, and why", blocks=_blocks(
                           entity, project, run_id, summary))
    report.save()
    return str(report.url)


def _blocks(entity: str, project: str, run_id: str, summary: dict[str, Any]) -> list[Any]:
    models = wr.Runset(entity=entity, project=project, name="models",
                       filters=f"{_of_run(run_id)} and Config('stage') = 'retrain'")
    everything = wr.Runset(entity=entity, project=project, name="every stage", filters=_of_run(run_id))
    tables = [block for heading, rows in summary["leaderboards"].items()
              for block in (wr.H1(heading), wr.MarkdownBlock(_markdown(rows)))]
    return [
        wr.H1("Verdict"), wr.UnorderedList(items=list(summary["verdict"])), *tables,
        wr.PanelGrid(runsets=[models], panels=[wr.BarPlot(title=name, metrics=[wr.SummaryMetric(name)])
                                               for name in summary["metrics"]]),
        wr.H1("Every stage"), wr.PanelGrid(runsets=[everything], panels=[wr.MediaBrowser(), wr.RunComparer()])]


def _markdown(rows: list[list[str]]) -> str:
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _of_run(run_id: str) -> str:
    quoted = run_id.replace("\\", "\\\\").replace("'", "\\'")
    return f"Config('run_id') = '{quoted}'"
