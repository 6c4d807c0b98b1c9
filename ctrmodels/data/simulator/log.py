"""The simulated log as Arrow batches and parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels.data.simulator.cohort import Cohort, Day
from ctrmodels.data.simulator.config import Interaction, SimulatorConfig
from ctrmodels.data.simulator.policy import position_propensity
from ctrmodels.data.simulator.truth import PlantedInteraction, SimulatorTruth, bayes
from ctrmodels.data.simulator.world import World
from ctrmodels.errors import InputError

PART = "part-00000.parquet"


@dataclass(frozen=True)
class SimulatedBatch:
    """Impressions of one day of some users, ordered by time, list and position.

    Attributes:
        day: ``YYYY-MM-DD``.
        log: what a real log would hold.
        truth: what it would not, row by row; ``docs/simulator.md`` explains the columns.
    """

    day: str
    log: pa.RecordBatch
    truth: pa.RecordBatch


class Simulator:
    """Generates the log of a configuration, in memory bounded by a day of one cohort of users.

    Equal configurations give equal logs, bit for bit on one machine and one version of numpy (another
    processor may round an exponential's last digit differently). A log with more ``rows`` contains all rows
    of the smaller one that has the same other values: more rows are more users.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self._world = World(config)

    def batches(self) -> Iterator[SimulatedBatch]:
        """All rows: cohort by cohort of users, each cohort day by day."""
        left = self.config.rows
        for number in count():
            cohort = Cohort(self._world, number)
            for day in cohort.days(left):
                if day.kept.any():
                    yield self._batch(day)
            left -= cohort.rows
            if left <= 0:
                return

    def truth(self, sample: int = 200_000) -> SimulatorTruth:
        """The planted truth; Bayes AUCs are computed over the first ``sample`` rows (all, if fewer)."""
        config, world = self.config, self._world
        parts, rows = [], 0
        for batch in self.batches():
            parts.append(batch.truth)
            rows += batch.truth.num_rows
            if rows >= sample:
                break
        table = pa.Table.from_batches(parts).slice(0, sample)
        aucs, rates = bayes(*(table[name].to_numpy() for name in (
            "relevance", "examination", "p_cart_given_click", "p_purchase_given_cart")))
        launched = np.bincount(world.catalogue.launched, minlength=config.days)
        return SimulatorTruth(
            pairs=self._planted(config.pairs),
            triples=self._planted(config.triples),
            ranks={f.name: f.rank for f in config.fields},
            informative={"item_id": round(config.item_head * config.items),
                         **{f.name: f.informative for f in config.fields}},
            position_bias=tuple(world.examination.tolist()),
            history_strength=config.history_strength,
            category_appeal=tuple(tuple(day) for day in world.appeal.tolist()),
            items_known=tuple(np.cumsum(launched).tolist()),
            bayes_auc=aucs, rates=rates, sample=table.num_rows)

    def write(self, folder: Path, truth: Path | None = None) -> None:
        """Write ``folder/day=YYYY-MM-DD/part-00000.parquet`` and, apart from it, the truth.

        Args:
            folder: for the log; must be absent or empty.
            truth: for the truth columns, row by row in the same files, and ``truth.json``; must be absent or
                empty. ``None`` = not written.

        Raises:
            InputError: a folder has files in it.
        """
        for target in (folder, truth):
            if target is not None and target.exists() and any(target.iterdir()):
                raise InputError(target, "folder", next(target.iterdir()).name, "is not empty",
                                 "choose another folder or empty it")
        writers: dict[Path, pq.ParquetWriter] = {}
        with ExitStack() as stack:
            for batch in self.batches():
                for target, rows in ((folder, batch.log), (truth, batch.truth)):
                    if target is None:
                        continue
                    path = target / f"day={batch.day}" / PART
                    if path not in writers:
                        path.parent.mkdir(parents=True)
                        writers[path] = stack.enter_context(pq.ParquetWriter(path, rows.schema))
                    writers[path].write_batch(rows)
        if truth is not None:
            self.truth().save(truth / "truth.json")

    def _planted(self, interactions: Sequence[Interaction]) -> tuple[PlantedInteraction, ...]:
        return tuple(PlantedInteraction(i.fields, i.strength, self._world.rank(i)) for i in interactions)

    def _batch(self, day: Day) -> SimulatedBatch:
        date = self.config.start + timedelta(days=day.day)
        midnight = int(datetime.combine(date, time(), UTC).timestamp())
        request, place = np.nonzero(day.kept)
        keys = {"request_id": pa.array(day.request_id[request]), "position": pa.array((place + 1).astype(np.int32))}
        log = {**keys, "timestamp": pa.array(midnight + day.requests.second[request]),
               **self._features(day, request, place), **_labels(day, request, place)}
        if self.config.log_propensity:
            log["position_propensity"] = _propensity(day, request, place)
        return SimulatedBatch(date.isoformat(), pa.RecordBatch.from_pydict(log),
                              pa.RecordBatch.from_pydict(keys | _truth(day, request, place)))

    def _features(self, day: Day, request: np.ndarray, place: np.ndarray) -> dict[str, pa.Array]:
        catalogue, item = self._world.catalogue, day.lists.item[request, place]
        columns = {"user_id": pa.array(day.user_id[request]), "item_id": pa.array(item)}
        for plan in self.config.fields:
            values = (catalogue.values[plan.name][item] if plan.side == "item"
                      else day.requests.values[plan.name][request])
            columns[plan.name] = pa.array(values.astype(np.int32), mask=values == plan.values)
        columns["price"] = pa.array(catalogue.price[item], from_pandas=True)
        columns["history"] = _lists(day.history[request])
        return columns


def _labels(day: Day, request: np.ndarray, place: np.ndarray) -> dict[str, pa.Array]:
    done = day.responses
    steps = {"click": done.clicked, "cart": done.carted, "purchase": done.bought}
    columns = {name: pa.array(step[request, place].astype(np.int8)) for name, step in steps.items()}
    return columns | {"dwell": pa.array(np.round(done.seconds[request, place], 3), from_pandas=True)}


def _propensity(day: Day, request: np.ndarray, place: np.ndarray) -> pa.Array:
    whole = np.asarray(day.kept.all(axis=1))
    chance = np.zeros(day.kept.shape)
    chance[whole] = position_propensity(day.lists.propensity_first[whole])
    return pa.array(chance[request, place], mask=~whole[request])


def _truth(day: Day, request: np.ndarray, place: np.ndarray) -> dict[str, pa.Array]:
    planted, lists = day.responses, day.lists
    columns = {
        "relevance": planted.relevance,
        "examination": planted.examination,
        "p_click": planted.relevance * planted.examination,
        "p_cart_given_click": planted.cart,
        "p_purchase_given_cart": planted.purchase,
        "dwell_given_click": planted.dwell,
        "propensity": lists.propensity,
        "propensity_first": lists.propensity_first,
    }
    return {name: pa.array(column[request, place]) for name, column in columns.items()}


def _lists(padded: np.ndarray) -> pa.ListArray:
    """Rows of ids [N, L], -1 = nothing, as lists."""
    real = padded >= 0
    offsets = np.concatenate([[0], np.cumsum(real.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(padded[real]))
