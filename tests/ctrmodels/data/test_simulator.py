"""The simulator's logs show what was planted, within sampling error, and nothing that was not."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from ctrmodels.data.simulator import (
    FieldPlan,
    Interaction,
    Simulator,
    SimulatorConfig,
    expected_auc,
    position_propensity,
    value_of_order,
)
from ctrmodels.data.simulator.cohort import Cohort
from ctrmodels.data.simulator.policy import draw_candidates, plackett_luce
from ctrmodels.data.simulator.world import World
from ctrmodels.errors import InputError

KEYS = ["request_id", "position"]
FUNNEL = {"click": "p_click", "cart": "p_cart_given_click", "purchase": "p_purchase_given_cart"}


def frames(config: SimulatorConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The whole log (with the column ``day``) and its truth."""
    batches = list(Simulator(config).batches())
    log = pd.concat([b.log.to_pandas().assign(day=b.day) for b in batches], ignore_index=True)
    truth = pd.concat([b.truth.to_pandas() for b in batches], ignore_index=True)
    return log, truth


@pytest.fixture(scope="module")
def simulated() -> tuple[pd.DataFrame, pd.DataFrame]:
    return frames(SimulatorConfig(rows=120_000, seed=3))


# --- reproducibility ----------------------------------------------------------------------------------


def test_equal_configurations_write_equal_bytes_and_seeds_differ(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> list[tuple[str, str]]:
        folder = tmp_path / name
        Simulator(SimulatorConfig(rows=3_000, seed=seed)).write(folder / "log", folder / "truth")
        return [(str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).hexdigest())
                for p in sorted(folder.rglob("*")) if p.is_file()]

    first, again, other = digest("a", 5), digest("b", 5), digest("c", 6)
    assert first == again
    assert all(x != y for x, y in zip(first, other, strict=True))


def test_a_larger_log_contains_the_smaller_one_across_cohorts() -> None:
    small, small_truth = frames(SimulatorConfig(rows=90_000, days=2, seed=1))
    large, large_truth = frames(SimulatorConfig(rows=130_000, days=2, seed=1))
    assert small.user_id.max() >= 2048, "the comparison must reach the second cohort"
    for part, whole in ((small, large), (small_truth, large_truth)):
        common = part[KEYS].merge(whole, on=KEYS, how="left")[part.columns]
        pd.testing.assert_frame_equal(common, part, check_dtype=False)


def test_a_day_does_not_depend_on_the_days_that_follow() -> None:
    short, _ = frames(SimulatorConfig(rows=20_000, days=2))
    long, _ = frames(SimulatorConfig(rows=20_000, days=4))
    last = long.user_id.max()  # its rows may be cut off by the row limit
    earlier = long[long.day.isin(short.day.unique()) & (long.user_id < last)].reset_index(drop=True)
    same = short[short.user_id < last].reset_index(drop=True)
    assert len(same) > 1_000
    pd.testing.assert_frame_equal(same.sort_values(KEYS, ignore_index=True),
                                  earlier.sort_values(KEYS, ignore_index=True))


@pytest.mark.parametrize("rows", [1, 17, 1_003])
def test_the_number_of_rows_is_exact(rows: int) -> None:
    assert sum(b.log.num_rows for b in Simulator(SimulatorConfig(rows=rows)).batches()) == rows


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        simulator = Simulator(SimulatorConfig(rows=rows))
        tracemalloc.start()
        for _ in simulator.batches():
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(600_000) < 1.3 * peak(200_000)


# --- the log ------------------------------------------------------------------------------------------


def test_lists_hold_distinct_items_at_positions_from_one(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    by_request = log.groupby("request_id")
    assert not log.duplicated(KEYS).any() and not log.duplicated(["request_id", "item_id"]).any()
    assert (by_request.position.min() == 1).all()
    assert (by_request.position.max() == by_request.size()).all()
    for column in ("user_id", "timestamp", "device", "hour", "gender"):
        assert (by_request[column].nunique() == 1).all()


def test_each_step_of_the_funnel_implies_the_one_before(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    assert (log.cart <= log.click).all() and (log.purchase <= log.cart).all()
    assert (log.dwell.notna() == (log.click == 1)).all()


def test_users_items_and_fields_keep_their_values(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    for owner, columns in (("user_id", ["gender", "age_band", "city"]), ("item_id", ["category", "brand", "price"])):
        assert (log.groupby(owner)[columns].nunique(dropna=False) == 1).all(axis=None)
    seconds = log.timestamp % 86_400
    assert (log.hour == seconds // 3_600).all()
    assert (pd.to_datetime(log.timestamp, unit="s").dt.strftime("%Y-%m-%d") == log.day).all()
    assert log.age_band.isna().mean() == pytest.approx(0.05, abs=0.03)


def test_histories_are_the_users_own_clicks_before_the_request(
        simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    checked = 0
    for _, rows in log.sort_values(["user_id", "timestamp", "position"]).groupby("user_id"):
        clicks: list[int] = []
        for _, request in rows.groupby("timestamp", sort=True):
            for found in request.history:
                assert found.tolist() == clicks[-20:]
            clicks += request.item_id[request.click == 1].tolist()
            checked += len(request)
        if checked > 20_000:
            break
    assert checked > 20_000


def test_frequencies_fall_like_zipf_laws(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    cities = log.drop_duplicates("user_id").city.value_counts()
    assert cities.index[0] == 0
    assert cities[0] / cities[3] == pytest.approx(4**1.1, rel=0.35)
    shown = log.item_id.value_counts()
    assert shown.iloc[:500].sum() > 0.45 * len(log), "a tenth of the items has half of the impressions"
    requests = log.groupby("user_id").request_id.nunique()
    assert requests.max() > 10 * requests.median()


def test_new_ids_appear_every_day_and_never_before(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, _ = simulated
    known = Simulator(SimulatorConfig(rows=1_000, seed=3)).truth().items_known
    latest = log.groupby("day").item_id.max()
    assert (latest.to_numpy() < np.array(known)).all()
    assert (latest.to_numpy()[1:] >= np.array(known)[:-1]).all()
    first_day = log.groupby("user_id").day.min()
    assert (first_day.value_counts().reindex(sorted(log.day.unique())) > 50).all()


def test_categories_drift_only_if_told_to() -> None:
    def shift(drift: float) -> float:
        log, _ = frames(SimulatorConfig(rows=60_000, drift=drift, new_items=0.0))
        share = log.groupby("day").category.value_counts(normalize=True).unstack(fill_value=0)
        return float((share.iloc[0] - share.iloc[-1]).abs().sum())

    assert shift(0.3) > 4 * shift(0.0)


# --- the truth ----------------------------------------------------------------------------------------


def within(expected: np.ndarray, observed: np.ndarray, sigmas: float = 4.5) -> None:
    """Assert that 0/1 draws agree with their probabilities in sum."""
    assert abs((observed - expected).sum()) < sigmas * np.sqrt((expected * (1 - expected)).sum())


def test_every_step_is_calibrated_to_its_true_probability_by_position_and_score(
        simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, truth = simulated
    for label, parent in (("click", None), ("cart", "click"), ("purchase", "cart")):
        inside = np.ones(len(log), bool) if parent is None else log[parent].to_numpy() == 1
        p, y = truth[FUNNEL[label]].to_numpy()[inside], log[label].to_numpy()[inside]
        position = log.position.to_numpy()[inside]
        for k in range(1, 11):
            within(p[position == k], y[position == k])
        decile = np.digitize(p, np.quantile(p, np.linspace(0.1, 0.9, 9)))
        for d in range(10):
            within(p[decile == d], y[decile == d])


def test_clicks_fall_with_the_position_as_planted(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, truth = simulated
    planted = np.array(Simulator(SimulatorConfig(rows=1_000)).truth().position_bias)
    np.testing.assert_allclose(planted, np.arange(1, 11) ** -0.7)
    observed = log.click.groupby(log.position).sum() / truth.relevance.groupby(truth.position).sum()
    np.testing.assert_allclose(observed, planted, rtol=0.08)


def test_dwell_time_has_its_true_mean(simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, truth = simulated
    ratio = log.dwell / truth.dwell_given_click
    assert ratio.mean() == pytest.approx(1.0, abs=5 * ratio.std() / np.sqrt(ratio.count()))


def test_bayes_auc_is_reached_by_the_truth_and_by_no_other_score(
        simulated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    log, truth = simulated
    config = SimulatorConfig(rows=120_000, seed=3)
    bayes = Simulator(config).truth().bayes_auc
    cart = truth.p_click * truth.p_cart_given_click
    spaces = {
        "click@all": (log.click, truth.p_click, log.click >= 0),
        "click@all.position_unknown": (log.click, truth.relevance, log.click >= 0),
        "cart@click": (log.cart, truth.p_cart_given_click, log.click == 1),
        "cart@all": (log.cart, cart, log.click >= 0),
        "purchase@cart": (log.purchase, truth.p_purchase_given_cart, log.cart == 1),
        "purchase@all": (log.purchase, cart * truth.p_purchase_given_cart, log.click >= 0),
    }
    assert bayes.keys() == spaces.keys()
    rng = np.random.default_rng(0)
    for name, (label, score, inside) in spaces.items():
        assert roc_auc_score(label[inside], score[inside]) == pytest.approx(bayes[name], abs=0.015), name
        noisy = np.log(score[inside]) + 0.5 * rng.standard_normal(inside.sum())
        assert roc_auc_score(label[inside], noisy) < bayes[name], name
    assert bayes["click@all.position_unknown"] < bayes["click@all"] - 0.02


def test_expected_auc_is_the_mean_auc_of_labels_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    p, score = rng.random(4_000), np.round(rng.random(4_000) + 0.0, 2)  # rounded: with ties
    score = score + np.round(p, 1)
    drawn = [roc_auc_score(rng.random(4_000) < p, score) for _ in range(50)]
    assert expected_auc(score, p) == pytest.approx(np.mean(drawn), abs=0.003)
    kept = rng.random(4_000) < 0.5
    assert expected_auc(score, p, kept.astype(float)) == pytest.approx(expected_auc(score[kept], p[kept]))


def test_the_truth_lies_apart_from_the_log_and_in_the_same_order(tmp_path: Path) -> None:
    config = SimulatorConfig(rows=5_000, days=2)
    Simulator(config).write(tmp_path / "log", tmp_path / "truth")
    parts = sorted(p.relative_to(tmp_path / "log") for p in (tmp_path / "log").rglob("*.parquet"))
    assert [str(p) for p in parts] == ["day=2025-01-06/part-00000.parquet", "day=2025-01-07/part-00000.parquet"]
    for part in parts:
        log = pq.ParquetFile(tmp_path / "log" / part).read()
        truth = pq.ParquetFile(tmp_path / "truth" / part).read()
        assert log.select(KEYS).equals(truth.select(KEYS))
        assert set(truth.column_names) & set(log.column_names) == set(KEYS)
        assert pa.types.is_list(log.schema.field("history").type)
    told = json.loads((tmp_path / "truth" / "truth.json").read_text())
    assert told["sample"] == 5_000 and told["pairs"][0]["fields"] == ["user_id", "category"]
    assert told["ranks"]["campaign"] == 0 and told["informative"]["city"] == 30


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="not empty"):
        Simulator(SimulatorConfig(rows=1_000)).write(tmp_path)


# --- the planted effects ------------------------------------------------------------------------------

FLAT = (FieldPlan("category", "item", 8, zipf=0.3, rank=3), FieldPlan("age_band", "user", 6, rank=3),
        FieldPlan("device", "context", 4, rank=3), FieldPlan("gender", "user", 3, rank=3))
PLAIN = SimulatorConfig(rows=50_000, days=1, position_bias=0.0, history_strength=0.0, drift=0.0, item_head=0.0,
                        fields=FLAT, pairs=(), triples=())


def gain(log: pd.DataFrame, crossed: tuple[str, ...]) -> float:
    """Test AUC of a logistic regression with the crossed field beside the single fields, less that without."""
    names = [f.name for f in FLAT]
    cross = log[list(crossed)].astype(str).agg("-".join, axis=1)
    half = len(log) // 2
    scores = []
    for columns in (log[names], pd.concat([log[names], cross], axis=1)):
        x = OneHotEncoder(handle_unknown="ignore").fit_transform(columns.astype(str).to_numpy())
        model = LogisticRegression(C=1.0, max_iter=300).fit(x[:half], log.click[:half])
        scores.append(roc_auc_score(log.click[half:], model.decision_function(x[half:])))
    return scores[1] - scores[0]


def test_a_planted_pair_shows_and_no_other_pair_does() -> None:
    log, _ = frames(replace(PLAIN, pairs=(Interaction(("category", "age_band"), 0.8),)))
    assert gain(log, ("category", "age_band")) > 0.03
    assert gain(log, ("category", "device")) < 0.005
    assert gain(log, ("age_band", "device")) < 0.005


def test_a_planted_triple_shows_in_none_of_its_pairs() -> None:
    triple = ("category", "age_band", "device")
    log, _ = frames(replace(PLAIN, triples=(Interaction(triple, 0.9),)))
    assert gain(log, triple) > 0.03
    for pair in combinations(triple, 2):
        assert gain(log, pair) < 0.01


def test_interactions_have_their_strength_and_mean_zero_given_all_fields_but_one() -> None:
    config = SimulatorConfig()
    world, rng, n = World(config), np.random.default_rng(0), 400_000
    for interaction in (*config.pairs, *config.triples):
        factors = {}
        for name in interaction.fields:
            if name == "user_id":
                factors[name] = rng.standard_normal((n, world.taste_rank))
            else:
                effects = world.effects[name]
                factors[name] = effects.factors[rng.choice(len(effects.share), n, p=effects.share)]
        part = world.interact(interaction, factors)
        assert part.std() == pytest.approx(interaction.strength, rel=0.03)
        first, *others = interaction.fields
        if first != "user_id":
            effects = world.effects[first]
            given = {name: factors[name][:50, None] for name in others} | {first: effects.factors[:-1][None]}
            np.testing.assert_allclose(world.interact(interaction, given) @ effects.share, 0.0, atol=1e-9)


def test_tail_values_and_noise_fields_are_uninformative() -> None:
    world = World(SimulatorConfig())
    city, campaign = world.effects["city"], world.effects["campaign"]
    assert np.all(city.factors[30:] == 0) and np.all(city.main[30:] == 0)
    assert np.all(np.abs(city.main[:30]) > 0)
    assert campaign.factors.shape[1] == 0 and np.all(campaign.main == 0)
    assert np.all(world.catalogue.effect[:500] != 0) and np.all(world.catalogue.effect[500:] == 0)
    assert all(e.factors.shape[1] == p.rank for p, e in zip(world.config.fields, world.effects.values(), strict=True))


def test_the_content_of_histories_matters() -> None:
    """With the history effect, clicks follow the share of the item's category among recent clicks."""
    def lift(strength: float) -> float:
        log, _ = frames(replace(PLAIN, rows=40_000, days=5, history_strength=strength))
        category = np.zeros(log.item_id.max() + 1, int)
        category[log.item_id] = log.category
        rows = log[log.history.map(len) >= 3]
        share = np.array([np.mean(category[h] == c) for h, c in zip(rows.history, rows.category, strict=True)])
        x = np.column_stack([share, pd.get_dummies(rows[[f.name for f in FLAT]].astype(str))])
        return float(LogisticRegression(C=100.0, max_iter=500).fit(x, rows.click).coef_[0, 0])

    assert lift(2.0) == pytest.approx(2.0, abs=0.5)
    assert abs(lift(0.0)) < 0.5


# --- the logging policy -------------------------------------------------------------------------------


def test_plackett_luce_propensities_are_the_frequencies_of_lists() -> None:
    n = 200_000
    score = np.tile([0.0, 1.0, -1.0, 0.5], (n, 1))
    lists = plackett_luce(np.tile(np.arange(4), (n, 1)), score, 2, np.random.default_rng(0))
    seen = pd.DataFrame({"list": lists.item[:, 0] * 4 + lists.item[:, 1],
                         "chance": lists.propensity.prod(axis=1), "first": lists.item[:, 0],
                         "chance_first": lists.propensity_first[:, 0]})
    for key, chance in (("list", "chance"), ("first", "chance_first")):
        by = seen.groupby(key)[chance].agg(["mean", "std", "size"])
        assert by["mean"].sum() == pytest.approx(1.0) and (by["std"] < 1e-12).all()
        np.testing.assert_allclose(by["size"] / n, by["mean"], atol=0.005)


def test_inverse_propensity_weights_recover_the_value_of_another_policy() -> None:
    """First positions, reweighted to a uniform choice of a candidate, click at the candidates' mean rate."""
    rng = np.random.default_rng(0)
    n, size = 100_000, 6
    score = rng.standard_normal((n, size))
    lists = plackett_luce(np.tile(np.arange(size), (n, 1)), score, 1, rng)
    p = 1 / (1 + np.exp(-score))
    shown = np.take_along_axis(p, lists.item, axis=1)[:, 0]
    reward = rng.random(n) < shown
    estimate = np.mean(reward / size / lists.propensity_first[:, 0])
    assert reward.mean() > p.mean() + 0.1
    assert estimate == pytest.approx(p.mean(), abs=0.02)


def test_candidates_are_distinct_even_when_few_items_dominate() -> None:
    share = np.arange(1, 101, dtype=float) ** -1.5
    drawn = draw_candidates(np.cumsum(share) / share.sum(), 2_000, 24, np.random.default_rng(0))
    assert (np.sort(drawn, axis=1)[:, 1:] > np.sort(drawn, axis=1)[:, :-1]).all()
    assert drawn.min() == 0 and drawn.max() == 99


def test_the_policy_puts_better_items_first_and_temperature_undoes_it() -> None:
    def slope(temperature: float) -> float:
        _, truth = frames(SimulatorConfig(rows=40_000, temperature=temperature))
        by_position = truth.relevance.groupby(truth.position).mean()
        return float(by_position[1] - by_position[10])

    assert slope(0.3) > 0.05
    assert abs(slope(50.0)) < 0.02


def test_position_propensities_are_those_of_all_orders_of_the_shown_set() -> None:
    rng = np.random.default_rng(4)
    score = rng.normal(0, 1.5, (30, 7))
    lists = plackett_luce(np.tile(np.arange(7), (30, 1)), score, 4, rng)
    found = position_propensity(lists.propensity_first)
    for request, first in enumerate(lists.propensity_first):
        chances = {o: np.prod(first[list(o)] / (1 - np.cumsum(np.r_[0, first[list(o)]])[:4]))
                   for o in permutations(range(4))}
        expected = [sum(c for o, c in chances.items() if o[k] == k) / sum(chances.values()) for k in range(4)]
        assert found[request] == pytest.approx(expected, rel=1e-10)


def test_position_propensities_of_lists_that_show_all_candidates_add_up_over_the_places() -> None:
    score = np.random.default_rng(5).normal(size=(1, 6))
    first = np.exp(score) / np.exp(score).sum()
    at_first = [position_propensity(first[:, [i, *(j for j in range(6) if j != i)]])[0, 0] for i in range(6)]
    assert at_first == pytest.approx(first[0])
    assert position_propensity(np.full((3, 6), 1 / 6)) == pytest.approx(np.full((3, 6), 1 / 6))
    assert position_propensity(np.full((2, 1), 0.3)).tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="13 items: at most 12"):
        position_propensity(np.full((2, 13), 0.01))


def test_the_log_carries_position_propensities_if_asked_and_null_in_a_list_that_it_cuts_off() -> None:
    config = SimulatorConfig(rows=1003, list_size=5, candidates=9, log_propensity=True)
    batches = list(Simulator(config).batches())
    log, truth = (pa.Table.from_batches([getattr(b, part) for b in batches]).to_pandas() for part in ("log", "truth"))
    size = log.groupby("request_id")["position"].transform("size")
    assert log.position_propensity.isna().tolist() == (size < 5).tolist() and (size < 5).any()
    order = log[size == 5].sort_values(["request_id", "position"]).index
    expected = position_propensity(truth.propensity_first[order].to_numpy().reshape(-1, 5))
    assert log.position_propensity[order].to_numpy() == pytest.approx(expected.ravel(), rel=1e-12)
    assert "position_propensity" not in next(Simulator(SimulatorConfig(rows=1003)).batches()).log.schema.names
    with pytest.raises(InputError, match=r"list_size = 13: log_propensity .* at most 12 items"):
        SimulatorConfig(list_size=13, log_propensity=True)


def test_the_value_of_the_shown_order_is_what_the_log_brings(simulated) -> None:
    log, truth = simulated
    whole = truth.groupby("request_id")["position"].transform("size") == 10
    columns = {name: truth.loc[whole, name].to_numpy().reshape(-1, 10) for name in (
        "position", "relevance", "p_cart_given_click", "examination")}
    columns["worth"] = columns.pop("p_cart_given_click")
    examination = columns.pop("examination")[0]
    shown = -columns.pop("position")
    carts = log.loc[whole, "cart"].mean()
    assert value_of_order(shown, **columns, examination=examination) == pytest.approx(carts, rel=0.03)
    best = value_of_order(columns["relevance"] * columns["worth"], **columns, examination=examination)
    assert best > 1.15 * value_of_order(shown, **columns, examination=examination)


# --- bad values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [
    ("rows", 0), ("seed", -1), ("days", 0), ("list_size", 0), ("list_size", 30), ("items", 50), ("history", 0),
    ("requests_per_day", 0.0), ("temperature", -1.0), ("popularity_zipf", 3.0), ("position_bias", -0.1),
    ("item_head", 1.5), ("late_users", -0.1), ("new_items", -1.0),
    ("fields", (FieldPlan("category", "item", 1),)), ("fields", (FieldPlan("brand", "item", 5),)),
    ("fields", (*FLAT, FieldPlan("click", "item", 5))), ("fields", (*FLAT, FLAT[0])),
    ("fields", (*FLAT, FieldPlan("hour", "context", 12))),
    ("pairs", (Interaction(("category", "colour"), 1.0),)), ("pairs", (Interaction(("brand", "brand"), 1.0),)),
    ("pairs", (Interaction(("campaign", "brand"), 1.0),)), ("triples", (Interaction(("city", "brand"), 1.0),)),
])
def test_a_value_that_cannot_be_simulated_is_named(key: str, value: object) -> None:
    others: dict[str, object] = {"pairs": (), "triples": ()} if key == "fields" else {}
    with pytest.raises(InputError) as caught:
        SimulatorConfig(**{**others, key: value})  # type: ignore[arg-type]
    assert caught.value.key in (key, "candidates") and "\n" not in str(caught.value)


def test_cohorts_do_not_know_of_each_other() -> None:
    world = World(SimulatorConfig(days=1))
    alone = next(Cohort(world, 7).days(10**9))
    for number in range(3):
        next(Cohort(world, number).days(10**9))
    again = next(Cohort(world, 7).days(10**9))
    np.testing.assert_array_equal(alone.responses.clicked, again.responses.clicked)
    np.testing.assert_array_equal(alone.lists.item, again.lists.item)
