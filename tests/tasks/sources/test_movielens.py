"""MovieLens-100K: the wheel is verified, its absence is told with the remedy, its rows are the known ones."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctrmodels.errors import InputError
from tasks import config
from tasks.sources import movielens

PARAMS = Path(__file__).parents[3] / "params.yaml"


def pip_that(returncode: int, writes: bytes | None = None) -> Any:
    """A stand-in for subprocess.run that plays pip."""
    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if writes is not None:
            (Path(arguments[arguments.index("--dest") + 1]) / "recbole-1.2.1-7-py3-none-any.whl").write_bytes(writes)
        return subprocess.CompletedProcess(arguments, returncode, "", "ERROR: first\nERROR: No matching distribution")

    return run


def test_without_a_package_index_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRMODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", pip_that(1))
    with pytest.raises(InputError) as caught:
        movielens.wheel()
    line = str(caught.value)
    assert "No matching distribution" in line and "pip download --no-deps recbole==1.2.1" in line
    assert str(tmp_path / "cache" / movielens.WHEEL) in line and "\n" not in line


def test_another_file_than_the_expected_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRMODELS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip_that(0, b"something else"))
    with pytest.raises(InputError, match=r"sha256 = .*not the expected file"):
        movielens.wheel()


def test_real_ratings_are_all_there_in_order_of_time(tmp_path: Path) -> None:
    try:
        movielens.wheel()
    except InputError as error:
        pytest.skip(f"no package index: {error}")
    described = movielens.prepare(config.load(PARAMS).data, tmp_path, tmp_path)
    assert isinstance(described.path, str)
    table = pq.read_table(described.path)
    assert table.num_rows == 100_000
    assert {"user_id", "item_id", "rating", "timestamp", "age", "gender", "occupation", "zip_code", "zip_region",
            "release_year", "genres", "movie_title"} == set(table.column_names)
    assert len(table["user_id"].unique()) == 943 and len(table["item_id"].unique()) == 1682
    assert table["timestamp"].type == pa.int64() and table["timestamp"].to_pylist() == sorted(
        table["timestamp"].to_pylist())
    assert table["genres"].null_count == 0 and table["occupation"].null_count == 0
