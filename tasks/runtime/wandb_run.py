"""The child process that talks to W&B: ``python -m tasks.runtime.wandb_run MODE``, the run as JSON on stdin.

The only module that imports wandb. It prints one JSON line for each thing achieved (``mode``, ``opened``,
``url``, ``report``), so that its parent knows how far it came when it has to be stopped.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from tasks.rendering import charts
from tasks.runtime.figure import Figure
from tasks.runtime.stage import die_with_parent

INIT_SHARE = 0.25  # of the deadline may be spent on a server that does not answer
MAX_FILE_BYTES = 4_000_000


def main(mode: str, payload: dict[str, Any]) -> None:
    """Log the run described by ``payload`` (:func:`tasks.runtime.tracking.publish` builds it)."""
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
    _tell(mode="offline" if mode in ("offline", "dryrun") else "online")
    folder = Path(payload["folder"])
    with wandb.init(mode=mode, resume="allow", config=payload["config"],  # type: ignore[arg-type]
                    settings=_settings(payload["deadline"]), **payload["run"]) as run:
        _tell(opened=True, url=run.url)
        media: dict[str, Any] = {}
        for name in payload["figures"]:
            media |= _media(Figure.load(folder / "figures" / f"{name}.json"))
        if media:
            run.log(media)
        run.summary.update(payload["summary"])
        if not run.offline:
            _link_inputs(run, payload["lineage"]["inputs"])
        run.log_artifact(_artifact(folder, payload), aliases=[_alias(payload["lineage"]["manifest"])])
        entity, online = run.entity, not run.offline
    if online and payload["run"]["job_type"] == "report":
        from tasks.rendering import wandb_report  # needs a login; nobody else needs it

        _tell(report=wandb_report.save(entity, payload["run"]["project"], payload["run"]["group"],
                                       json.loads((folder / "summary.json").read_text())))


def _settings(deadline: float) -> wandb.Settings:
    """No code, console, host or package list leaves the machine; a server that is silent is given up on."""
    return wandb.Settings(
        init_timeout=INIT_SHARE * deadline, console="off", silent=True, disable_git=True, disable_code=True,
        save_code=False, disable_job_creation=True, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, x_save_requirements=False)


def _logged_in() -> bool:
    """Whether W&B finds credentials (environment, netrc, settings); asks no server and no person."""
    try:
        return bool(wandb.login())
    except wandb.errors.UsageError:
        return False


def _media(figure: Figure) -> dict[str, Any]:
    """A figure as W&B shows it: its data as a table, a native chart of it, and the report's own drawing."""
    table = _table(figure)
    if figure.kind == "table":
        return {f"tables/{figure.id}": table}
    drawing = Image.open(io.BytesIO(charts.png(figure)))
    shown: dict[str, Any] = {f"figures/{figure.id}": wandb.Image(drawing, caption=figure.caption)}
    if figure.kind == "line":
        shown[f"charts/{figure.id}"] = wandb.plot.line(table, "x", "y", stroke="series", title=figure.title)
    elif figure.kind == "scatter":
        shown[f"charts/{figure.id}"] = wandb.plot.scatter(table, "x", "y", title=figure.title)
    else:
        shown[f"tables/{figure.id}"] = table
    return shown


def _table(figure: Figure) -> wandb.Table:
    columns: list[str | int]
    if figure.kind == "table":
        columns = [str(c) for c in figure.columns]
        rows = [list(row) for row in figure.values]
    elif figure.kind == "heatmap":
        columns = ["row", "column", "value"]
        rows = [[r, c, v] for r, line in zip(figure.rows, figure.values, strict=True)
                for c, v in zip(figure.columns, line, strict=True)]
    else:
        columns = ["series", "x", "y", "error", "label"]
        rows = [[s.name, x, y, s.error[i] if s.error else None, s.labels[i] if s.labels else None]
                for s in figure.series for i, (x, y) in enumerate(zip(s.x, s.y, strict=True))]
    return wandb.Table(columns=columns, data=rows, allow_mixed_types=True)


def _artifact(folder: Path, payload: dict[str, Any]) -> wandb.Artifact:
    """The stage's small result files; data and weights stay where DVC keeps them, named by their digest."""
    artifact = wandb.Artifact(_artifact_name(payload["run"]["name"]), type=payload["run"]["job_type"],
                              metadata=payload["lineage"])
    kept = [folder / "MANIFEST.json", folder / "metrics.json", folder / "report.html",
            *folder.glob("*.json"), *folder.glob("figures/*.json"), *folder.glob("spec/*.json")]
    for path in sorted(set(kept)):
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
    return artifact


def _link_inputs(run: wandb.Run, inputs: dict[str, str]) -> None:
    """Draw the lineage in W&B: each input by the digest of its content, whichever run made it.

    An input that was made offline, or before this project existed on the server, is not there to be linked;
    the artifact's metadata names it all the same.
    """
    for title, digest in inputs.items():
        with contextlib.suppress(wandb.errors.CommError, ValueError):
            run.use_artifact(f"{_artifact_name(title)}:{_alias(digest)}")


def _artifact_name(title: str) -> str:
    return title.replace("@", "-")


def _alias(digest: str) -> str:
    return f"content-{digest[:16]}"


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1], json.load(sys.stdin))
