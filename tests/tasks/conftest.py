"""One Spark session for all tests of stages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tasks.runtime import spark as spark_runtime


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    os.environ.setdefault("CTRMODELS_SPARK_MASTER", "local[2]")
    # Compiling a query costs seconds, running one on a test's few rows milliseconds.
    os.environ.setdefault("CTRMODELS_SPARK_CONF", "\n".join((
        "spark.driver.memory=2g", "spark.sql.codegen.wholeStage=false", "spark.sql.codegen.factoryMode=NO_CODEGEN")))
    with spark_runtime.session("tests", 2) as session:
        yield session
