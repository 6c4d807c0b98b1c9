"""What tune_fusion decides: guard-rails withhold, options, segments, several scorers, off-policy estimates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fusion_workspace import DEVICES, LISTS, OBJECTIVES, encoded, read, run, schema_of, workspace
from safetensors.numpy import save_file
from scipy.special import expit, logit

from ctrmodels.data.schema import Schema
from ctrmodels.data.simulator import Simulator, SimulatorConfig
from ctrmodels.errors import InputError
from ctrmodels.fusion import FusionSpec, Point, ScoreTable, rank_correlation, tuning_window
from ctrmodels.metrics import ListRanks
from ctrmodels.multitask.checkpoint import WEIGHTS, fingerprint
from ctrmodels.multitask.predictions import Predictions
from tasks import config
from tasks.fusion.exposure import Rates, whole_lists
from tasks.fusion.inputs import Logged
from tasks.runtime import manifest
from tasks.runtime.figure import Figure

LOOSE = {"calibration": [0.5, 2.0], "rank_correlation": -1, "segment": -1, "gini": 1, "coverage": 0}


@pytest.fixture(autouse=True)
def without_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def decide(root: Path, **settings: Any) -> Path:
    """The stage with a short search of one function."""
    return run(root, **{"trials": 8, "functions": ["weighted_product"], **settings})


def valid_of(root: Path) -> Predictions:
    folder = root / "outputs" / "select_model"
    return Predictions.load(folder / "predictions" / "valid.parquet", Schema.load(folder / "schema.json"))


def model_of(root: Path) -> str:
    return fingerprint(root / "outputs" / "select_model" / WEIGHTS)


def fused(root: Path, spec: FusionSpec) -> np.ndarray:
    table = valid_of(root)
    return spec.score(table.scores, table.group, model_of(root))


# --- guard-rails


def test_a_broken_guard_rail_withholds_the_recommendation_and_says_which(tmp_path: Path) -> None:
    out = decide(workspace(tmp_path), floor=0, guardrails={**LOOSE, "rank_correlation": 0.999})
    document = read(out / "fusion.json")
    assert document["withheld"] and document["broken"] == ["rank_correlation"]
    assert "withheld, equal weights stays in service: rank_correlation = " in document["reason"]
    served, proposed = FusionSpec.load(out / "fusion.json"), FusionSpec.from_json(document["proposal"])
    assert {s.weight for s in served.scores} == {1.0}
    assert len({s.weight for s in proposed.scores}) == 2
    rows = ~tuning_window(valid_of(tmp_path).group, 0.5)
    found = rank_correlation(ListRanks(valid_of(tmp_path).group[rows]), fused(tmp_path, proposed)[rows],
                             fused(tmp_path, served)[rows])
    reading = next(c for c in document["guardrails"] if c["name"] == "rank_correlation")
    assert reading["value"] == pytest.approx(found) and reading["low"] == 0.999 and not reading["holds"]
    assert read(out / "metrics.json")["withheld"] == 1
    figure = Figure.load(out / "figures" / "guardrails.json")
    assert ["rank_correlation", "broken"] in [[line[0], line[-1]] for line in figure.values]


def test_the_same_order_within_its_limits_is_served(tmp_path: Path) -> None:
    out = decide(workspace(tmp_path), floor=0, guardrails=LOOSE)
    document = read(out / "fusion.json")
    assert not document["withheld"] and not document["broken"] and "withheld" not in document["reason"]
    assert document["spec"] == document["proposal"]


def test_a_calibration_that_drifts_after_the_tuning_window_withholds(tmp_path: Path) -> None:
    def drifted(p: Predictions) -> Predictions:
        late = ~tuning_window(p.group, 0.5)
        fewer = np.random.default_rng(0).random(len(p.row)) < 0.5
        return dataclasses.replace(p, labels=np.where((late & fewer)[:, None], 0, p.labels).astype(np.float32))

    assert read(decide(workspace(tmp_path), guardrails={"calibration": [0.5, 3]}) / "fusion.json")["broken"] == []
    broken = read(decide(workspace(tmp_path / "drift", drifted), guardrails={"rank_correlation": -1}) / "fusion.json")
    assert {"calibration.click", "calibration.buy"} <= set(broken["broken"])


def test_segments_that_lose_are_named_and_short_ones_are_not_judged(tmp_path: Path) -> None:
    out = decide(workspace(tmp_path), primary="buy", floor=0, guardrails={
        **LOOSE, "segments": ["device", "user"], "segment": 0, "lists": 50})
    document = read(out / "fusion.json")
    names = {c["name"] for c in document["guardrails"]}
    assert {f"segment.device=device {i}" for i in range(DEVICES)} <= names
    assert not any(n.startswith("segment.user") for n in names) and len(document["unjudged"]) == LISTS / 2


def test_without_an_item_field_coverage_is_not_judged_and_nothing_is_withheld_for_it(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    folder = root / "outputs" / "select_model"
    schema = schema_of()
    dataclasses.replace(schema, fields=tuple(dataclasses.replace(f, side="context") for f in schema.fields)).save(
        folder / "schema.json")
    manifest.write(folder)
    document = read(decide(root, guardrails=LOOSE) / "fusion.json")
    assert {"coverage", "gini"} <= set(document["unjudged"]) and not document["withheld"]


def test_an_incumbent_is_what_options_are_held_against(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    first = decide(root, primary="buy", floor=0, guardrails=LOOSE)
    shutil.copy(first / "fusion.json", tmp_path / "in_service.json")
    old = FusionSpec.load(tmp_path / "in_service.json")
    document = read(decide(root, primary="buy", floor=0, incumbent=str(tmp_path / "in_service.json"),
                        guardrails={"calibration": [0.5, 2]}) / "fusion.json")
    assert document["incumbent"] == "in_service.json"  # its folders may tell what is not to be shown
    chosen = next(o for o in document["options"] if o["chosen"])
    assert chosen["risk"] == pytest.approx(0, abs=1e-9)  # the same search finds the same order
    assert chosen["change"]["ndcg@10.buy"]["mean"] == pytest.approx(0, abs=1e-9)
    assert FusionSpec.from_json(document["proposal"]).function == old.function


def test_an_incumbent_of_another_model_or_of_other_objectives_is_refused(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    path = tmp_path / "in_service.json"
    shutil.copy(decide(root) / "fusion.json", path)
    save_file({"weight": np.zeros(3, np.float32)}, root / "outputs" / "select_model" / WEIGHTS)
    manifest.write(root / "outputs" / "select_model")
    with pytest.raises(InputError, match="the fusion was fitted for"):
        decide(root, incumbent=str(path))
    path.write_text(path.read_text().replace("buy@all", "love@all"))
    with pytest.raises(InputError, match=r"in_service.json: scores = 'love@all': is no score of this run"):
        decide(root, incumbent=str(path))


@pytest.mark.parametrize(("content", "fault"), [
    (None, "FileNotFoundError"), ("{", "JSONDecodeError"), ("{}", "KeyError"), ("[]", "TypeError"),
    ('{"spec": {"scores": [], "function": "weighted_sum", "fitted_on": {}}}', "AttributeError")])
def test_an_absent_or_damaged_incumbent_names_its_key_and_the_remedy(
        tmp_path: Path, content: str | None, fault: str) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"not a readable fusion ({fault}); give the fusion.json that is in "
                                                   "service, or null")) as told:
        decide(workspace(tmp_path), incumbent=str(path))
    assert (told.value.where, told.value.key, told.value.value) == ("params.yaml", "tune_fusion.incumbent", str(path))


def test_an_incumbent_that_was_overwritten_since_the_run_was_planned_is_refused(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    path = root / "in_service.json"
    shutil.copy(decide(root) / "fusion.json", path)
    planned = hashlib.sha256(path.read_bytes()).hexdigest()
    settings: dict[str, Any] = {"incumbent": "in_service.json", "incumbent_digest": planned}  # relative: to the root
    assert read(decide(root, **settings) / "fusion.json")["incumbent"] == "in_service.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match=rf"^params.yaml: tune_fusion.incumbent_digest = '{planned}': in_service.json "
                                         r"changed since this run was planned \(its digest is [0-9a-f]{64}\); "
                                         r"start a new run, or remove the key"):
        decide(root, **settings)


# --- what the report shows


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = workspace(tmp_path_factory.mktemp("decision"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        return run(root, primary="buy", floor=0.9, trials=30, guardrails=LOOSE)


def test_the_winners_curse_is_the_difference_of_the_two_windows_gains(out: Path) -> None:
    found = read(out / "metrics.json")
    front = pq.read_table(out / "front.parquet").to_pandas()
    chosen = front[front.chosen].iloc[0]
    equal = front[(front.source == "equal") & (front.function == chosen.function)].iloc[0]
    tuning, report = (chosen[f"{w}.ndcg@10.buy"] - equal[f"{w}.ndcg@10.buy"] for w in ("tuning", "report"))
    assert found["optimism"] == pytest.approx(tuning - report, abs=1e-8)
    figure = Figure.load(out / "figures" / "winners_curse.json")
    assert [s.name for s in figure.series] == ["tuning window", "report window"]
    place = figure.series[0].x.index(chosen.function)
    assert [s.y[place] for s in figure.series] == pytest.approx([tuning, report], abs=1e-8)
    assert all(min(s.error) > 0 for s in figure.series)


def test_the_hypervolume_of_the_search_is_held_against_random_search_with_as_many_trials(out: Path) -> None:
    series = {s.name: s.y for s in Figure.load(out / "figures" / "hypervolume.json").series}
    assert set(series) == {"tpe", "random"}
    assert len(series["random"]) == 30 and len(series["tpe"]) <= 30
    for values in series.values():
        assert (np.diff(values) >= 0).all()
    assert series["tpe"][0] == series["random"][0]  # both begin with equal weights
    assert read(out / "metrics.json")["trials.hypervolume.random"] == pytest.approx(series["random"][-1])


def test_sensitivity_is_zero_at_the_weights_and_moves_by_the_recomputed_metric(out: Path) -> None:
    figure = Figure.load(out / "figures" / "sensitivity.json")
    assert {s.name for s in figure.series} <= {"click", "buy"} and len(figure.series) == 2
    for series in figure.series:
        assert series.y[list(series.x).index(1.0)] == 0
        assert any(v != 0 for v in series.y)


def test_options_name_their_change_and_what_they_break(out: Path) -> None:
    figure, document = Figure.load(out / "figures" / "options.json"), read(out / "fusion.json")
    assert [line[0] for line in figure.values] == [
        f"{o['point_id']}{' (chosen)' if o['chosen'] else ''}" for o in document["options"]]
    assert all(line[-1] == "none" for line in figure.values)


def test_front_rows_rebuild_their_order(out: Path) -> None:
    """Function, constants and weights of a row of front.parquet are all that its order needs."""
    root = out.parents[1]
    front = pq.read_table(out / "front.parquet").to_pandas()
    spec = FusionSpec.load(out / "fusion.json")
    row = front[front.chosen].iloc[0]
    point = Point(row.function, (row["weight.click"], row["weight.buy"]), (), row.source, json.loads(row.constants))
    assert fused(root, spec.with_weights(point.fusion(), point.weights)).tolist() == fused(root, spec).tolist()


# --- segments and scorers


def by_device(p: Predictions) -> Predictions:
    """Half of the lists follow the scores as they are, in the other half clicks follow the score of buying."""
    unit = np.unique(p.group, return_inverse=True)[1]
    odd = unit % DEVICES == 1
    rng = np.random.default_rng(5)
    chance = np.where(odd, 0.9 * p.scores["buy@click"] ** 2, p.scores["click@all"])
    clicked = rng.random(len(p.row)) < chance
    return dataclasses.replace(p, labels=np.stack([clicked, clicked & (p.labels[:, 1] > 0)], axis=1).astype(np.float32))


def test_segments_get_weights_of_their_own_where_their_lists_vouch_for_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"segments": "device", "metric": "gauc", "floor": 0, "trials": 16,
                                "functions": ["weighted_product"], "guardrails": LOOSE}
    root = workspace(tmp_path, lists=900)
    other = workspace(tmp_path / "planted", by_device, lists=900)
    planted, alike = (read(decide(r, **settings) / "fusion.json")["segments"] for r in (other, root))
    assert planted["field"] == "device" and {s for s, _, _ in planted["segments"]} == {"device 0", "device 1"}
    offsets = {s: o[1] for s, o, _ in planted["segments"]}
    assert offsets["device 1"] - offsets["device 0"] > 0.5
    assert planted["gain"]["gauc.click"]["low"] > 0
    assert max(abs(o[1]) for _, o, _ in alike["segments"]) < 0.25


def test_segments_are_refused_for_functions_with_constants_and_logs_without_lists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only weights differ by segment, and shifted_power has constants"):
        decide(tmp_path, segments="device", functions=["weighted_sum", "shifted_power"])
    with pytest.raises(InputError, match=r"tune_fusion.segments = 'colour' is no categorical or numeric field"):
        decide(tmp_path, segments="colour")
    root = workspace(tmp_path / "listless", lambda p: dataclasses.replace(p, group=np.zeros_like(p.group)))
    with pytest.raises(InputError, match=r"tune_fusion.segments = 'device': segments are made of lists"):
        decide(root, segments="device")
    with pytest.raises(InputError, match="this list has rows of two segments"):
        decide(workspace(tmp_path / "mixed"), segments="item")


def test_objectives_may_be_scored_by_models_of_their_own(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    single = root / "outputs" / "retrain" / "esmm"
    schema = schema_of()
    for role in ("valid", "test"):
        table = Predictions.load(root / "outputs" / "select_model" / "predictions" / f"{role}.parquet", schema)
        better = {**table.scores, "buy@all": table.scores["buy@all"] ** 0.5}
        dataclasses.replace(table, scores=better).save(single / "predictions" / f"{role}.parquet", schema)
    save_file({"weight": np.full(3, 7, np.float32)}, single / WEIGHTS)
    manifest.write(single)
    out = decide(root, scorers={"buy": "esmm"})
    spec = FusionSpec.load(out / "fusion.json")
    models = {"click@all": model_of(root), "buy@all": fingerprint(single / WEIGHTS)}
    assert {s.name: s.model for s in spec.scores} == models and len(set(models.values())) == 2
    with pytest.raises(InputError, match="the fusion was fitted for"):
        fused(root, spec)
    with pytest.raises(InputError, match=r"tune_fusion.scorers.buy = 'mmoe' is not among retrain.models"):
        decide(root, scorers={"buy": "mmoe"})


def test_rows_that_are_not_those_of_the_predictions_are_refused(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    path = root / "outputs" / "encode" / "valid" / "row.npy"
    np.save(path, np.load(path)[::-1])
    manifest.write(root / "outputs" / "encode")
    with pytest.raises(InputError, match="not the 4800 rows of the chosen model's predictions in their order"):
        decide(root)


# --- off-policy


SIZE = 5


def funnel(root: Path, rows: int, seed: int = 3) -> tuple[Path, dict[str, np.ndarray]]:
    """A workspace whose valid rows are a simulated log with propensities; returns the truth of these rows too."""
    config = SimulatorConfig(rows=rows, seed=seed, list_size=SIZE, candidates=2 * SIZE, log_propensity=True)
    batches = list(Simulator(config).batches())
    log, truth = ({name: np.concatenate([getattr(b, part)[name].to_numpy(zero_copy_only=False) for b in batches])
                   for name in batches[0].__getattribute__(part).schema.names if name not in ("history",)}
                  for part in ("log", "truth"))
    blur = np.random.default_rng(seed).normal(0, 0.7, (2, rows))
    buys = truth["p_cart_given_click"] * truth["p_purchase_given_cart"]
    click = expit(logit(truth["relevance"]) + blur[0])
    scores = {"click@all": click, "buy@all": click * expit(logit(buys) + blur[1])}
    table = Predictions(np.arange(rows), log["request_id"], log["position"],
                        np.stack([log["click"], log["purchase"]], axis=1).astype(np.float32),
                        {name: score.astype(np.float32) for name, score in scores.items()})
    workspace(root)
    folder = root / "outputs" / "select_model"
    table.save(folder / "predictions" / "valid.parquet", schema_of())
    manifest.write(folder)
    encoded(root, "valid", table, np.nan_to_num(log["position_propensity"].astype(float)))
    return root, truth


def true_clicks(root: Path, truth: dict[str, np.ndarray], spec: FusionSpec, k: int) -> float:
    """Clicks per exposure at the first k positions of the report window, if it were ordered by ``spec``."""
    table, score = valid_of(root), fused(root, spec)
    rows = np.flatnonzero(~tuning_window(table.group, 0.5))
    _, unit, size = np.unique(table.group[rows], return_inverse=True, return_counts=True)
    rows = rows[size[unit] == SIZE]
    lists = rows[np.lexsort((-score[rows], table.group[rows]))].reshape(-1, SIZE)
    examination = truth["examination"][rows][np.argsort(table.position[rows], kind="stable")]
    curve = examination.reshape(SIZE, -1)[:, 0]
    return float((truth["relevance"][lists] * curve)[:, :k].mean())


def test_off_policy_estimates_hold_the_true_value_of_the_recommended_order(tmp_path: Path) -> None:
    root, truth = funnel(tmp_path, 60_000)
    out = decide(root, floor=0, k=SIZE, guardrails=LOOSE)
    document = read(out / "fusion.json")
    found = {(e["order"], e["objective"], e["method"]): e for e in document["off_policy"]["estimates"]}
    assert len(found) == 2 * 2 * 3 and not any(e["refused"] for e in found.values())
    logged = valid_of(root).labels[~tuning_window(valid_of(root).group, 0.5), 0].mean()
    for order, spec in (("recommended", "proposal"), ("incumbent", None)):
        served = FusionSpec.from_json(document["proposal"])
        if spec is None:
            served = served.with_weights(served.function, [1.0, 1.0])
        value = true_clicks(root, truth, served, SIZE)
        for method in ("ips", "snips", "doubly_robust"):
            e = found[order, "click", method]
            assert e["value"]["low"] < value < e["value"]["high"]
            assert e["effective"] > 1000 and e["mean_ratio"] == pytest.approx(1, abs=0.1)
            assert not e["value"]["low"] < logged < e["value"]["high"]  # the stub that reports the logged mean
    figure = Figure.load(out / "figures" / "off_policy.json")
    assert len(figure.values) == 12


def test_a_log_too_short_for_an_estimate_says_so_and_one_without_propensities_too(tmp_path: Path) -> None:
    short = read(decide(funnel(tmp_path / "short", 4_000)[0], k=SIZE) / "fusion.json")["off_policy"]
    assert short["rows"] > 0
    assert all("effective sample size" in e["refused"] and "value" not in e for e in short["estimates"])
    none = read(decide(workspace(tmp_path / "none")) / "fusion.json")["off_policy"]
    assert none == {"rows": 0, "refused": "the log has no propensities: name data.propensity", "estimates": []}


def test_lists_with_anything_unknown_are_left_out() -> None:
    group = np.repeat(np.arange(6), 3)
    position, propensity, labels = np.tile([1, 2, 3], 6), np.full(18, 0.5), np.ones(18)
    position[3], position[6], propensity[9], labels[12] = 0, 2, 0, np.nan
    position[15:] = [2, 3, 4]
    logged = logged_of(group, position, propensity)
    assert whole_lists(logged, labels).tolist() == [True] * 3 + [False] * 15


def logged_of(group: np.ndarray, position: np.ndarray, propensity: np.ndarray, labels: np.ndarray | None = None,
              items: np.ndarray | None = None) -> Logged:
    labels = np.zeros((len(group), 1)) if labels is None else labels[:, None]
    table = ScoreTable(OBJECTIVES[:1], np.zeros((len(group), 1)), labels, group)
    fields = {} if items is None else {"item": items}
    return Logged(table, position, propensity, fields, None if items is None else "item")


def test_the_reward_model_knows_positions_and_items() -> None:
    rng = np.random.default_rng(0)
    position, items = np.tile([1, 2], 20_000), rng.integers(0, 3, 40_000)
    truth = np.array([0, 0.4, 0.2])[position] * np.array([0.5, 1.0, 1.5])[items]
    model = Rates.fit(logged_of(np.repeat(np.arange(20_000), 2), position, np.ones(40_000),
                                (rng.random(40_000) < truth).astype(float), items), 0)
    predicted = model.seen(position) * model.lift(items, len(items))
    assert np.abs(predicted - truth).max() < 0.03
    assert model.lift(np.array([99]), 1).tolist() == [1.0]


def test_propensities_need_positions_and_lists(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"source": "simulated", "fields": [{"name": "a", "kind": "categorical"}],
                           "objectives": [{"name": "o", "label": "o"}], "split": {"by": "random"}, "propensity": "p"}
    with pytest.raises(ValueError, match=r"it needs data\.position and data\.group"):
        config.Data.model_validate(raw)
    assert config.Data.model_validate({**raw, "position": "position", "group": "g"}).propensity == "p"
