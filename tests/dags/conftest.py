"""An Airflow of the tests' own. Its settings must stand before Airflow is imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.runtime.environment import embedded

if TYPE_CHECKING:
    from airflow.sdk import DAG

ROOT = Path(__file__).resolve().parents[2]
HOME = tempfile.TemporaryDirectory(prefix="airflow-")
os.environ.update(embedded(ROOT, {**os.environ, "AIRFLOW_HOME": HOME.name,
                                  "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags")}))


@pytest.fixture(scope="session")
def dag() -> DAG:
    """The project's DAG, as Airflow parses it."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    assert set(bag.dags) == {"ctr_automl"}
    return bag.dags["ctr_automl"]
