"""### From an impression log to a multi-objective ranking model

Every task is a stage of `dvc.yaml` and has its name there, in W&B, in `params.yaml` and under `outputs/`.

* **start** commits what shall run to the branch `runs/RUN`: the working tree as it is now, with the values of
  the trigger form in `params.yaml`. Editing files later does not change a run that has begun.
* **every stage** works in a clone of that commit. A stage whose inputs, parameters and code are those of an
  earlier run is taken from the cache. A log that breaks its contract is not retried.
* **finish** commits the merged `dvc.lock` on top: `git switch runs/RUN && dvc checkout` brings every output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from airflow.sdk import DAG, Param, TaskGroup, task

from dags import graph, policies
from dags.operators import StageOperator

HERE = Path(__file__).resolve().parent
PROJECT = Path(os.environ.get("CTRMODELS_REPOSITORY", HERE.parent))
PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
FORM = json.loads((HERE / "form.json").read_text())
STAGES = graph.load(PROJECT / "dvc.yaml")


def form_field(key: str, schema: Mapping[str, Any]) -> Param:
    """One field of the trigger form; its default is the value in params.yaml."""
    rules = {name: rule for name, rule in schema.items() if name != "default"}
    try:
        default = graph.lookup(PARAMS, key)
    except KeyError:
        default = schema["default"]
    items = rules.get("items", {})
    if choices := items.get("enum") or items.get("examples"):  # the UI offers the examples of an array to tick
        rules |= {"examples": list(dict.fromkeys([*choices, *default])), "uniqueItems": True}
    return Param(default, **rules)


@task(**policies.GIT)
def start(*, run_id: str, dag_run: Any) -> str:
    """Commit what this run shall run on; returns the commit."""
    from tasks.runtime import revision

    return revision.begin(PROJECT, run_id, dag_run.conf or {})


@task(**policies.GIT)
def keys(name: str, commit: str) -> list[str]:
    """List the variants of one stage, as the run's params.yaml chooses them."""
    from tasks.runtime import revision

    stage = next(stage for stage in STAGES if stage.name == name)
    return stage.addresses(revision.params(PROJECT, commit))


@task(**policies.GIT)
def finish(commit: str, *, run_id: str, ti: Any) -> str:
    """Commit the lock entries of all stages to the run's branch; returns the commit."""
    from tasks.runtime import revision

    locks = ti.xcom_pull(task_ids=[stage.name for stage in STAGES])
    return revision.finish(PROJECT, run_id, commit, locks)


with DAG(
    "ctr_automl",
    dag_display_name="CTR AutoML",
    description="Search, retrain, compare and fuse ranking models on one impression log",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=4,
    tags=["ctrmodels"],
    default_args=policies.DEFAULTS,
    params={key: form_field(key, schema) for key, schema in FORM.items()},
) as dag:
    commit = start()
    end = finish(commit)
    groups = {name: TaskGroup(name, prefix_group_id=False)
              for name in dict.fromkeys(stage.group for stage in STAGES)}
    operators: dict[str, Any] = {}
    for stage in STAGES:
        group = groups[stage.group]
        common = {"task_id": stage.name, "task_group": group, "doc_md": stage.doc, "queue": stage.queue,
                  "pool": stage.pool, "execution_timeout": stage.timeout,
                  "repository": str(PROJECT), "revision": commit, "upstream": stage.upstream}
        if stage.keys:
            addresses = keys.override(task_id=f"{stage.name}_keys", task_group=group)(stage.name, commit)
            mapped = StageOperator.partial(map_index_template="{{ task.stage }}", **common)
            operators[stage.name] = mapped.expand(stage=addresses)
        else:
            operators[stage.name] = StageOperator(stage=stage.name, **common)
        for name in stage.upstream:
            operators[name] >> operators[stage.name]
        operators[stage.name] >> end
