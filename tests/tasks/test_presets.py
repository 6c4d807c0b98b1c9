"""The presets read the public data sets they describe, with the known counts and rates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from raw_logs import Ingested, public, run

PRESETS = Path(__file__).parents[2] / "presets"
pytestmark = pytest.mark.usefixtures("spark")


def ingested(root: Path, preset: str) -> Ingested:
    return run(root, yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())["data"])


def test_criteo(tmp_path: Path) -> None:
    public("criteo-sample")
    found = ingested(tmp_path, "criteo")
    assert found.metrics["rows"] == 8000 and found.metrics["rows.valid"] == 409
    assert found.metrics["positive_rate.click"] == pytest.approx(0.216, abs=5e-4)
    assert found.table["I12"].null_count == 6214 and found.table["C22"].null_count == 6538


def test_avazu_has_a_header_in_one_file_only(tmp_path: Path) -> None:
    public("avazu-sample")
    found = ingested(tmp_path, "avazu")
    assert found.metrics["rows"] == 8999 and found.metrics["positive_rate.click"] == pytest.approx(0.174, abs=5e-4)
    assert set(found.column("_day")) == {"2014-10-21"} and set(found.column("hour_of_day")) == {"00"}
    assert sum(v is None for name in found.table.column_names[:22] for v in found.column(name)) == 0


@pytest.mark.slow
def test_census_income(tmp_path: Path) -> None:
    public("census-income")
    found = ingested(tmp_path, "census-income")
    assert found.metrics["rows"] == 99_762
    assert found.metrics["positive_rate.income"] == pytest.approx(0.062, abs=5e-4)
    assert found.metrics["positive_rate.never_married"] == pytest.approx(0.432, abs=5e-4)
    assert "instance_weight" not in found.table.column_names and "marital_stat" not in found.table.column_names


@pytest.mark.slow
def test_movielens_1m_with_users_and_items(tmp_path: Path) -> None:
    public("ml-1m")
    found = ingested(tmp_path, "movielens-1m")
    assert found.metrics["rows"] == 800_168
    assert found.metrics["rows.train"] + found.metrics["rows.arch"] == 2 * found.metrics["rows.valid"] == 400_084
    assert all(found.table[name].null_count == 0 for name in ("gender", "age", "occupation", "zip_region"))
    years = pd.Series(found.column("release_year"))
    assert years.str.fullmatch("19[0-9]{2}|2000").all()


@pytest.mark.slow
def test_simulated(tmp_path: Path) -> None:
    found = ingested(tmp_path, "simulated")
    assert found.metrics["days"] >= 5 and found.metrics["rows"] >= 100_000
    assert {0, None} & set(found.column("_position")) == set()
