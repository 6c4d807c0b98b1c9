"""The training benchmark measures what it says on a log that follows the contract."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contestants import bound, ours
from benchmarks.contestants.common import LATENCY_BATCHES, Task
from benchmarks.training import SETTINGS, Setting, table
from ctrmodels import metrics
from ctrmodels.data.planted import display_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "log"
    display_log(0, 6000, vocabularies=(50,) * 26).save(folder)
    return folder


def test_the_log_is_learnable_and_reproducible(log: Path) -> None:
    first, again = (display_log(0, 1000, vocabularies=(20,) * 9) for _ in range(2))
    assert np.array_equal(first.roles["train"].ids, again.roles["train"].ids)
    test = first.roles["test"]
    assert metrics.auc(test.labels[:, 0], first.truth["probability"]["test"]) > 0.6
    assert first.counts.sum() == 9 * 1000
    assert first.schema.numeric_fields and all(f.kind == "categorical" for f in first.schema.id_fields)


@pytest.mark.parametrize("model", ["deepfm", "dcnv2"])
def test_an_epoch_is_timed_and_scored(log: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ours", "--precision", "fp32", "--onnx"])
    for module in ("common", "ours"):
        monkeypatch.setattr(f"benchmarks.contestants.{module}.LATENCY_BATCHES", (1,))
    task = Task(log, model, (8,), 512, 6000, 1)
    ours.train(task)
    assert task.result["samples_per_s"] > 0 and 0.45 < task.result["auc"] < 0.9
    assert 0.45 < task.result["valid_auc"] < 0.9
    assert all(task.result[f"{name}_ms_1"] > 0 for name in ("latency", "onnx", "scorer"))


def test_the_bound_counts_every_product(log: Path) -> None:
    task = Task(log, "deepfm", (8, 4), 512, 6000, 1)
    bound.train(task)
    assert task.result["flops_per_sample"] == 6 * ((26 * 16 + 13) * 8 + 8 * 4 + 4)
    assert task.result["samples_per_s_fp32"] > 0


def test_ratios_are_to_the_fastest_peer_and_auc_is_that_of_the_rate_chosen_on_valid() -> None:
    def result(speed: float) -> list[dict[str, float]]:
        return [{"rate": rate, "samples_per_s": speed, "samples_per_cpu_s": speed, "peak_mb": 1, "valid_auc": valid,
                 "auc": auc, **{f"{k}_ms_{n}": 1.0 for k in ("latency", "onnx", "scorer") for n in LATENCY_BATCHES}}
                for rate, valid, auc in ((0.001, 0.71, 0.72), (0.002, 0.72, 0.7))]

    bounds = [{f"{k}_{d}": 1000.0 for k in ("samples_per_s", "gflops") for d in ("fp32", "bf16")}]
    text = table(Setting("deepfm", "8", 4), {"ours": result(600), "ours fp32": result(450), "bound": bounds,
                                             "FuxiCTR": result(100), "torch-rechub": result(50)})
    assert "| ours | 0.6 | 0.6 | 6.00 | 60% | 1 | 0.002 | 0.7000 |" in text
    assert "| torch-rechub | 0.1 | 0.1 | 0.50 |" in text
    assert len({s.name for s in SETTINGS.values()}) == 6
