"""The shuffling study starts from the worst order and trains by every order."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare import Study
from benchmarks.shuffle import sorted_by
from ctrmodels.data.planted import planted_pairs

LOG = planted_pairs(0, rows=4000)


def test_sorted_rows_are_the_same_rows() -> None:
    rows = LOG.roles["train"]
    ordered = sorted_by(rows, 1)
    assert np.all(np.diff(ordered.ids[:, 1]) >= 0)
    together = [np.column_stack([r.ids, r.labels]) for r in (rows, ordered)]
    assert np.array_equal(*(t[np.lexsort(t.T)] for t in together))


def test_a_study_prints_mean_and_spread_of_the_best_valid_auc(capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(LOG.roles["train"], LOG.roles["valid"], LOG.schema.objectives[0].name, 2,
                  {"epochs": 1, "batch_size": 256, "device": "cpu"})
    study.run("windows", buffer_mb=0)
    name, auc, sign, spread, *_ = capsys.readouterr().out.split()
    assert (name, sign) == ("windows", "±") and 0.4 < float(auc) < 0.9 and float(spread) >= 0
