"""tune_fusion on predictions whose best weights are known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fusion_workspace import OBJECTIVES, encoded, predictions, read, run, workspace

from ctrmodels import metrics
from ctrmodels.data.schema import Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.fusion import FusionSpec, tuning_window
from ctrmodels.multitask.checkpoint import WEIGHTS, fingerprint
from ctrmodels.multitask.predictions import Predictions
from tasks.runtime import manifest
from tasks.runtime.figure import Figure


@pytest.fixture(autouse=True)
def without_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def only_click(p: Predictions) -> Predictions:
    return dataclasses.replace(p, labels=p.labels[:, :1], scores={"click@all": p.scores["click@all"]})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = workspace(tmp_path_factory.mktemp("fusion"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        run(root, primary="buy", floor=0.9)
    return root


@pytest.fixture
def out(tuned: Path) -> Path:
    return tuned / "outputs" / "tune_fusion"


def test_the_spec_reproduces_the_reported_metrics_from_the_raw_scores(tuned: Path, out: Path) -> None:
    spec, found = FusionSpec.load(out / "fusion.json"), read(out / "metrics.json")
    folder = tuned / "outputs" / "select_model"
    schema = Schema.load(folder / "schema.json")
    valid = Predictions.load(folder / "predictions" / "valid.parquet", schema)
    test = Predictions.load(folder / "predictions" / "test.parquet", schema)
    report = ~tuning_window(valid.group, 0.5)
    for name, table, rows in (("report", valid, report), ("test", test, np.ones(len(test.row), bool))):
        fused = spec.score(table.scores, models=fingerprint(folder / WEIGHTS))[rows]
        for i, objective in enumerate(OBJECTIVES):
            label, group = table.labels[rows, i], table.group[rows]
            assert found[f"{name}.ndcg@10.{objective.name}"] == pytest.approx(
                metrics.ndcg(label, fused, group, 10), abs=1e-9)
            assert found[f"{name}.gauc.{objective.name}"] == pytest.approx(
                metrics.gauc(label, fused, group), abs=1e-9)


def test_every_order_is_reported_on_both_held_out_sets_with_errors(out: Path) -> None:
    found = read(out / "metrics.json")
    for window in ("report", "test"):
        for order in ("", "equal_weights.", "only.click.", "only.buy."):
            for metric in ("ndcg@10", "gauc"):
                for objective in ("click", "buy"):
                    assert 0 < found[f"{window}.{order}{metric}.{objective}"] < 1
                    assert 0 < found[f"{window}.{order}{metric}.{objective}.se"] < 0.1
        gain = "gain.ndcg@10.buy"
        assert found[f"{window}.{gain}.low"] <= found[f"{window}.{gain}"] <= found[f"{window}.{gain}.high"]
        assert found[f"{window}.{gain}"] == pytest.approx(
            found[f"{window}.ndcg@10.buy"] - found[f"{window}.equal_weights.ndcg@10.buy"], abs=1e-9)


def test_the_recommended_point_follows_the_stated_rule(out: Path) -> None:
    document, front = read(out / "fusion.json"), pq.read_table(out / "front.parquet").to_pandas()
    floor = 0.9 * front.loc[front.source == "corner", "tuning.ndcg@10.click"].max()
    assert document["floors"] == {"click": pytest.approx(floor)}
    admissible = front[front["tuning.ndcg@10.click"] >= floor]
    assert (front.feasible == front.index.isin(admissible.index)).all()
    chosen = front[front.chosen]
    assert len(chosen) == 1
    assert chosen["tuning.ndcg@10.buy"].item() == admissible["tuning.ndcg@10.buy"].max()
    assert next(o for o in document["options"] if o["chosen"])["point_id"] == chosen.point_id.item()
    assert document["primary"] == "buy" and "90%" in document["rule"] and "buy" in document["reason"]


def test_each_objective_keeps_its_floor_on_other_rows_and_one_score_alone_would_not(out: Path) -> None:
    """The floor is 90 % of the best single order on the tuning window; 2 % are left to chance on the report window."""
    found = read(out / "metrics.json")
    assert min(found["report.kept.buy"], found["report.kept.click"]) > 0.88
    best = max(found[f"report.only.{o}.ndcg@10.click"] for o in ("click", "buy"))
    assert found["report.kept.click"] == pytest.approx(found["report.ndcg@10.click"] / best)
    assert found["report.only.buy.ndcg@10.click"] / best < 0.88


def test_the_front_holds_every_point_and_marks_the_dominated(out: Path) -> None:
    front = pq.read_table(out / "front.parquet").to_pandas()
    assert set(front.function) == {"weighted_sum", "weighted_product"}
    assert {"corner", "equal", "start", "tpe", "local"} == set(front.source)
    assert front.point_id.tolist() == list(range(len(front)))
    values = front[["tuning.ndcg@10.click", "tuning.ndcg@10.buy"]].to_numpy()
    for point, dominated in zip(values, front.dominated, strict=True):
        assert dominated == ((values >= point).all(axis=1) & (values > point).any(axis=1)).any()
    assert (front[["report.ndcg@10.buy.se", "tuning.ndcg@10.click.se"]] > 0).all(axis=None)
    assert read(out / "metrics.json")["front.points"] == (~front.dominated).sum()


def test_options_lie_on_the_front_reach_the_floors_and_are_ordered_by_risk(out: Path) -> None:
    options, front = read(out / "fusion.json")["options"], pq.read_table(out / "front.parquet").to_pandas()
    assert 3 <= len(options) <= 5
    assert sum(o["chosen"] for o in options) == 1
    risks = [o["risk"] for o in options]
    assert risks == sorted(risks) and len(set(risks)) == len(risks)
    assert front.point_id[front.option].tolist() == sorted(o["point_id"] for o in options)
    for option in options:
        row = front.loc[option["point_id"]]
        assert row.feasible and not row.dominated and row.risk == option["risk"]
        assert json.loads(row.constants) == option["constants"]
        for name in ("ndcg@10.click", "ndcg@10.buy", "gauc.click", "gauc.buy"):
            change = option["change"][name]
            assert change["low"] <= change["mean"] <= change["high"]


def test_calibration_mends_the_planted_miscalibration_on_unseen_rows(out: Path) -> None:
    found = read(out / "metrics.json")
    for objective in ("click", "buy"):
        assert found[f"report.ece.{objective}.calibrated"] < 0.03 < found[f"report.ece.{objective}.raw"]


def test_figures_are_drawn_from_the_same_numbers(out: Path) -> None:
    figures = {p.stem: Figure.load(p) for p in (out / "figures").glob("*.json")}
    assert set(figures) == {"pareto_front", "weights", "objectives_report", "objectives_test", "gain", "calibration",
                            "kept", "options", "guardrails", "winners_curse", "sensitivity", "hypervolume"}
    chosen = next(s for s in figures["pareto_front"].series if s.name == "chosen")
    front = pq.read_table(out / "front.parquet").to_pandas()
    assert chosen.x[0] == pytest.approx(front.loc[front.chosen, "tuning.ndcg@10.buy"].item())
    assert all(s.error and min(s.error) > 0 for s in figures["pareto_front"].series if s.name.startswith("front"))
    assert [s.name for s in figures["objectives_report"].series] == [
        "recommended", "equal_weights", "only.click", "only.buy"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        folder = run(workspace(tmp_path / name), trials=12, metric="gauc")
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert files[0] == files[1]


def test_test_rows_change_nothing_but_the_test_metrics(tuned: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path)
    target = root / "outputs" / "select_model"
    schema = Schema.load(target / "schema.json")
    other = predictions(99, 5000, lists=50)
    other.save(target / "predictions" / "test.parquet", schema)
    encoded(root, "test", other)
    manifest.write(target)
    found, known = read(run(root, primary="buy", floor=0.9) / "metrics.json"), read(
        tuned / "outputs" / "tune_fusion" / "metrics.json")
    assert {k for k in known if known[k] != found[k]} <= {k for k in known if k.startswith("test.")}
    assert found["test.ndcg@10.buy"] != known["test.ndcg@10.buy"]


def test_trials_judged_on_a_sample_of_lists_are_judged_again_on_all(tmp_path: Path) -> None:
    folder = run(workspace(tmp_path), lists=100, trials=30)
    front = pq.read_table(folder / "front.parquet").to_pandas()
    assert len(front) < 2 * 30
    spec = FusionSpec.load(folder / "fusion.json")
    schema = Schema.load(tmp_path / "outputs" / "select_model" / "schema.json")
    valid = Predictions.load(tmp_path / "outputs" / "select_model" / "predictions" / "valid.parquet", schema)
    rows = tuning_window(valid.group, 0.5)
    fused = spec.score(valid.scores, models=fingerprint(tmp_path / "outputs" / "select_model" / WEIGHTS))
    expected = metrics.ndcg(valid.labels[rows, 0], fused[rows], valid.group[rows], 10)
    assert front.loc[front.chosen, "tuning.ndcg@10.click"].item() == pytest.approx(expected, abs=1e-9)


def test_one_objective_needs_no_fusion_and_says_so(tmp_path: Path) -> None:
    folder = run(workspace(tmp_path, only_click, OBJECTIVES[:1]))
    document = read(folder / "fusion.json")
    assert "nothing is fused" in document["reason"]
    assert read(folder / "metrics.json")["report.gain.ndcg@10.click"] == 0
    assert not (folder / "figures" / "pareto_front.json").exists()


def test_a_log_without_groups_is_judged_by_auc_over_rows(tmp_path: Path) -> None:
    def listless(p: Predictions) -> Predictions:
        return dataclasses.replace(p, group=np.zeros_like(p.group))

    folder = run(workspace(tmp_path, listless))
    assert read(folder / "fusion.json")["metric"] == "auc"
    found = read(folder / "metrics.json")
    assert 0.5 < found["report.auc.click"] < 1
    assert 0 < found["report.auc.click.se"] < 0.05


def test_a_regression_objective_is_fused_by_its_quantile(tmp_path: Path) -> None:
    def with_seconds(p: Predictions) -> Predictions:
        seconds = np.where(p.labels[:, 1] > 0, 60 * (1 + p.scores["buy@click"]), 0).astype(np.float32)
        return dataclasses.replace(p, labels=np.stack([p.labels[:, 0], seconds], axis=1),
                                   scores={**p.scores, "buy@all": 90 * p.scores["buy@all"]})

    objectives = (OBJECTIVES[0], Objective("buy", "regression"))
    folder = run(workspace(tmp_path / "seconds", with_seconds, objectives))
    kinds = [s["normaliser"]["kind"] for s in read(folder / "fusion.json")["spec"]["scores"]]
    assert kinds == ["platt", "quantile"]
    assert 0 < read(folder / "metrics.json")["report.gauc.buy"] < 1

    def with_losses(p: Predictions) -> Predictions:
        return dataclasses.replace(with_seconds(p), labels=with_seconds(p).labels * [1, -1])

    losses = workspace(tmp_path / "losses", with_losses, objectives)
    with pytest.raises(InputError, match=r"label.buy = 'below 0': NDCG .* set tune_fusion.metric: gauc"):
        run(losses)


def broken(**changes: Any) -> Callable[[Predictions], Predictions]:
    return lambda p: dataclasses.replace(p, **{k: v(p) for k, v in changes.items()})


@pytest.mark.parametrize(("change", "message"), [
    (broken(labels=lambda p: p.labels * [1, 0]), "label.buy = .*rows of both classes in the tuning window"),
    (broken(labels=lambda p: np.where(tuning_window(p.group, 0.5)[:, None], p.labels, p.labels * [1, 0])),
     "label.buy = .*no list of the report window has a positive"),
    (broken(scores=lambda p: {**p.scores, "buy@all": p.scores["buy@all"] * np.nan}), "score.buy@all = nan"),
    (broken(scores=lambda p: {"click@all": p.scores["click@all"]}), "score.buy@all = 'absent'"),
    (broken(scores=lambda p: {**p.scores, "buy@all": np.full(len(p.row), 0.1, np.float32)}),
     "label.buy = .*the score is the same on every row in the tuning window"),
    (broken(group=lambda p: np.arange(len(p.row))), r"groups = '\d+ lists of one row'"),
])
def test_unusable_predictions_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    root = workspace(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        run(root)
    assert "\n" not in str(caught.value)
    assert not (root / "outputs" / "tune_fusion").exists()


def test_an_unknown_primary_objective_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tune_fusion.primary = 'love' is no objective"):
        run(tmp_path, primary="love")


def test_a_fusion_belongs_to_its_model(tuned: Path, out: Path) -> None:
    spec, folder = FusionSpec.load(out / "fusion.json"), tuned / "outputs" / "select_model"
    scores = Predictions.load(folder / "predictions" / "valid.parquet", Schema.load(folder / "schema.json")).scores
    with pytest.raises(InputError, match="the fusion was fitted for"):
        spec.score(scores, models="another")


@pytest.mark.parametrize("settings", [
    {"functions": ["shifted_power", "reciprocal_rank"]}, {"tuner": "nsga2"}, {"metric": "mrr"}, {"metric": "value"}])
def test_every_function_tuner_and_metric_is_at_hand(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = run(workspace(tmp_path), trials=12, **settings)
    document = read(found / "fusion.json")
    assert document["spec"]["function"]["id"] in settings.get("functions", ["weighted_sum", "weighted_product"])
    assert document["metric"].startswith(settings.get("metric", "ndcg"))
    spec = FusionSpec.load(found / "fusion.json")
    assert spec.function == spec.with_weights(spec.function, [s.weight for s in spec.scores]).function
