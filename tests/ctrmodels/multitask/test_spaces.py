from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.multitask.spaces import joint_label, score_names, space_mask

NAN = float("nan")
SCHEMA = Schema((Field("user", "categorical", 3),),
                (Objective("click"), Objective("buy", after="click"), Objective("dwell", "regression", "click")),
                {}, "v", "r")
#                    click buy  dwell
LABELS = np.array([[1.0, 1.0, 9.0], [1.0, 0.0, NAN], [0.0, 0.0, NAN], [NAN, NAN, NAN], [1.0, NAN, 2.0]], np.float32)


@pytest.mark.parametrize(("objective", "space", "expected"), [
    ("click", "all", [1, 1, 1, 0, 1]), ("buy", "all", [1, 1, 1, 0, 0]), ("buy", "click", [1, 1, 0, 0, 0]),
    ("dwell", "click", [1, 0, 0, 0, 1]), ("dwell", "all", [1, 0, 1, 0, 1])])
def test_a_space_holds_the_rows_whose_label_is_known_and_whose_parent_happened(
        objective: str, space: str, expected: list[int]) -> None:
    assert space_mask(SCHEMA, LABELS, objective, space).tolist() == [bool(e) for e in expected]
    tensor = space_mask(SCHEMA, torch.from_numpy(LABELS), objective, space)
    assert tensor.tolist() == [bool(e) for e in expected]


def test_a_value_after_an_event_counts_zero_where_the_event_did_not_happen() -> None:
    before = LABELS.copy()
    np.testing.assert_array_equal(joint_label(SCHEMA, LABELS, "dwell"), [9.0, NAN, 0.0, NAN, 2.0])
    np.testing.assert_array_equal(LABELS, before)


def test_an_objective_has_no_space_but_all_and_its_parents() -> None:
    with pytest.raises(ValueError, match="'click' has no sample space 'buy'"):
        space_mask(SCHEMA, LABELS, "click", "buy")


def test_every_objective_is_scored_on_all_rows_and_in_its_parents_space() -> None:
    assert score_names(SCHEMA) == ["click@all", "buy@all", "buy@click", "dwell@all", "dwell@click"]
