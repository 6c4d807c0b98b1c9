"""One Spark session for all tests of stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tasks.runtime import spark as spark_runtime


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    with spark_runtime.session("tests", 2) as session:
        yield session
