from __future__ import annotations

import numpy as np
import pytest

from ctrmodels.multitask.gates import gate_report, jensen_shannon


def test_disjoint_experts_are_log_two_apart_and_one_gate_is_not_apart() -> None:
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(first, second) == pytest.approx(np.log(2))
    assert jensen_shannon(first, first) == 0.0


def test_report_of_one_selective_and_one_indifferent_gate() -> None:
    weights = np.zeros((10, 2, 4))
    weights[:, 0, 1] = 1.0
    weights[:, 1] = 0.25
    report = gate_report(weights)
    np.testing.assert_allclose(report.mean, np.array([[0, 1, 0, 0], [0.25] * 4]))
    np.testing.assert_allclose(report.sd, 0.0)
    np.testing.assert_allclose(report.entropy, [0.0, 1.0])
    assert report.divergence[0, 1] == report.divergence[1, 0]
    assert report.divergence[0, 1] == pytest.approx(jensen_shannon(weights[0, 0], weights[0, 1]))
    assert report.divergence[0, 0] == 0.0


def test_divergence_compares_gates_row_by_row_not_their_means() -> None:
    """Two gates that alternate out of step use all experts equally on average, and never the same one."""
    weights = np.zeros((10, 2, 2))
    weights[np.arange(10), 0, np.arange(10) % 2] = 1.0
    weights[np.arange(10), 1, (np.arange(10) + 1) % 2] = 1.0
    report = gate_report(weights)
    np.testing.assert_allclose(report.mean, 0.5)
    assert report.divergence[0, 1] == pytest.approx(np.log(2))


def test_experts_that_serve_some_rows_each_are_all_used_though_no_row_mixes_them() -> None:
    weights = np.zeros((8, 2, 4))
    weights[np.arange(8), 0, np.arange(8) % 4] = 1.0
    weights[:, 1, 2] = 1.0
    report = gate_report(weights)
    np.testing.assert_allclose(report.used, [4.0, 1.0])
    found = report.values(["click", "buy"])
    assert found["experts"] == 4 and found["used.click"] == pytest.approx(4) and found["entropy.click"] == 0
    assert found["divergence"] == pytest.approx(report.divergence[0, 1])
    assert "divergence" not in gate_report(weights[:, :1]).values(["click"])
