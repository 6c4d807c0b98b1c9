"""The DAG as Airflow sees it: its shape, its rules for every task, its form."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dags import graph
from tasks import config
from tasks.runtime.environment import pools

if TYPE_CHECKING:
    from airflow.sdk import DAG

ROOT = Path(__file__).resolve().parents[2]
STAGES = graph.load(ROOT / "dvc.yaml")
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())

PARSE = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
began = time.process_time()
bag = DagBag(sys.argv[1])
print(json.dumps([bag.import_errors, sorted(sys.modules), time.process_time() - began]))
"""


def test_tasks_and_edges_are_those_of_dvc_yaml(dag: DAG) -> None:
    names = {stage.name for stage in STAGES}
    keys = {f"{stage.name}_keys" for stage in STAGES if stage.keys}
    assert set(dag.task_ids) == names | keys | {"start", "finish"}
    for stage in STAGES:
        assert dag.get_task(stage.name).upstream_task_ids & names == set(stage.upstream)
    assert dag.get_task("start").upstream_task_ids == set()
    assert names <= dag.get_task("finish").upstream_task_ids


def test_stages_with_keys_are_mapped_over_the_keys_of_the_run(dag: DAG) -> None:
    mapped = {task.task_id for task in dag.tasks if task.is_mapped}
    assert mapped == {stage.name for stage in STAGES if stage.keys}
    for name in mapped:
        assert f"{name}_keys" in dag.get_task(name).upstream_task_ids
        assert dag.get_task(name).map_index_template == "{{ task.stage }}"


def test_every_task_says_where_how_long_and_how_often_it_may_run(dag: DAG) -> None:
    for task in dag.tasks:
        arguments = task.partial_kwargs if task.is_mapped else vars(task)
        assert arguments["retries"] == 2, task.task_id
        assert arguments["retry_policy"] is not None, task.task_id
        assert timedelta(0) < arguments["execution_timeout"] <= timedelta(days=1), task.task_id
        assert arguments["queue"] in {"default", "spark", "gpu"}, task.task_id
        assert arguments["pool"] in {*pools(), "default_pool"}, task.task_id
        assert arguments["doc_md"], task.task_id
        assert arguments["owner"] == "ctrmodels", task.task_id
    for stage in STAGES:
        if stage.name.startswith(("search_", "retrain")):
            assert (stage.queue, stage.pool) == ("gpu", "gpu")
    assert dag.catchup is False
    assert dag.doc_md
    assert dag.schedule is None


def test_a_refusal_is_final_and_a_fault_is_retried(dag: DAG) -> None:
    from airflow.sdk import RetryAction

    from ctrmodels.errors import DataContractError, InputError
    from tasks.runtime.failures import StageFailed, StageRefused

    policy: Any = dag.get_task("ingest").retry_policy
    arguments = ("where", "key", 1, "problem", "remedy")
    for error in (InputError(*arguments), DataContractError(*arguments), StageRefused("line")):
        assert policy.evaluate(error, 1, 2).action is RetryAction.FAIL
    for fault in (StageFailed("lost worker"), OSError("disk"), TimeoutError()):
        assert policy.evaluate(fault, 1, 2).action is RetryAction.DEFAULT


def test_the_dag_survives_serialization_with_its_links(dag: DAG) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    data = DagSerialization.to_dict(dag)
    json.dumps(data)
    restored = DagSerialization.from_dict(data)
    assert set(restored.task_ids) == set(dag.task_ids)
    for stage in STAGES:
        links = restored.get_task(stage.name).operator_extra_links
        assert [link.name for link in links] == ["W&B run", "Report", "Revision"]


def test_form_json_is_what_the_models_of_params_yaml_say() -> None:
    written = json.loads((ROOT / "dags" / "form.json").read_text())
    assert written == config.form_schema(), "run `python -m tasks.config`"


def test_the_form_starts_from_params_yaml(dag: DAG) -> None:
    assert set(dag.params) == set(config.form_schema())
    for key, schema in config.form_schema().items():
        try:
            expected = graph.lookup(PARAMS, key)
        except KeyError:
            expected = schema["default"]
        assert dag.params[key] == expected


def test_the_form_offers_lists_to_tick(dag: DAG) -> None:
    methods = dag.params.get_param("search_embedding.methods")
    assert methods.schema["examples"] == list(config.EMBEDDING_METHODS)
    assert methods.schema["section"] == "Search"


@pytest.mark.parametrize(("key", "value"), [
    ("data.source", "../../etc/passwd"),
    ("data.source", "movielens-100k; rm -rf /"),
    ("data.source", ["movielens-100k"]),
    ("data.source", None),
    ("search_embedding.methods", "autodim"),
    ("search_embedding.methods", []),
    ("search_embedding.methods", ["uniform", "uniform"]),
    ("search_embedding.methods", ["uniform", "$(reboot)"]),
    ("search_embedding.methods", ["uniform\n"]),
    ("search_embedding.seeds", 0),
    ("search_embedding.seeds", -1),
    ("search_embedding.seeds", 10**9),
    ("search_embedding.seeds", "3"),
    ("search_embedding.seeds", 1.5),
    ("select_embedding.budget", 0),
    ("select_embedding.budget", -0.5),
    ("select_embedding.budget", 1.01),
    ("select_embedding.metric", "{{ 7 * 7 }}"),
    ("retrain.models", ["mmoe", "`id`"]),
    ("retrain.models", {"mmoe": 1}),
    ("tune_fusion.trials", 10**7),
    ("tune_fusion.trials", True),
    ("training.epochs", "1 && true"),
])
def test_hostile_values_are_refused_before_a_run_exists(dag: DAG, key: str, value: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dag.params.get_param(key).resolve(value)


def test_parsing_imports_nothing_heavy_and_takes_little_time() -> None:
    done = subprocess.run([sys.executable, "-c", PARSE, str(ROOT / "dags")], capture_output=True, text=True,
                          check=True, cwd="/")
    errors, modules, seconds = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    heavy = {"torch", "pyspark", "great_expectations", "wandb", "dvc", "pandas", "numpy", "pyarrow", "optuna",
             "tasks.config", "tasks.runtime.workspace"}
    assert heavy & set(modules) == set()
    assert seconds < 1.0, "processor seconds, which a busy machine does not stretch"
