"""One operator: a stage of dvc.yaml, run in a workspace of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from tasks.runtime.workspace import Workspace


class StageLink(BaseOperatorLink):
    """A page that belongs to an executed stage. The worker calls it once the task has ended."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Address of the page, or nothing when the stage has none."""
        return getattr(operator, "pages", {}).get(self.name, "")


class TrackingLink(StageLink):
    """The stage's run in Weights & Biases."""

    name = "W&B run"


class ReportLink(StageLink):
    """The run's report."""

    name = "Report"


class RevisionLink(StageLink):
    """The run's commit, on the site that hosts the repository."""

    name = "Revision"


class StageOperator(BaseOperator):
    """Run one stage of dvc.yaml and return its entry of dvc.lock.

    Args:
        stage: its address in DVC: ``NAME`` or ``NAME@KEY``.
        repository: the checkout whose Git objects and DVC cache the run uses.
        revision: the run's commit.
        upstream: task ids of the stages whose outputs it reads.

    Raises:
        StageRefused: the stage does not accept what the user gave; is not retried.
        StageFailed: it failed otherwise; is retried.
    """

    template_fields: Sequence[str] = ("stage", "revision")
    operator_extra_links = (TrackingLink(), ReportLink(), RevisionLink())
    ui_color = "#d7ecff"

    def __init__(self, *, stage: str, repository: str, revision: str, upstream: Sequence[str] = (),
                 **arguments: Any) -> None:
        super().__init__(**arguments)
        self.stage, self.repository, self.revision, self.upstream = stage, repository, revision, upstream
        self.pages: dict[str, str] = {}
        self.cached = False
        self._workspace: Workspace | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage on the outputs that the upstream tasks recorded."""
        from tasks.runtime.workspace import open_workspace

        locks = context["ti"].xcom_pull(task_ids=self.upstream) if self.upstream else []
        with open_workspace(Path(self.repository), self.stage, context["run_id"], self.revision,
                            self.log.info) as self._workspace:
            self._workspace.prepare(self.revision, locks)
            lock = self._workspace.reproduce()
            self.pages, self.cached = self._workspace.pages(), self._workspace.cached
        return lock

    def on_kill(self) -> None:
        """End DVC, and the stage with it."""
        if self._workspace is not None:
            self._workspace.stop()
