"""What the stage tune_fusion reads: predictions, and of the encoded log what judging an order asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.fusion import FusionSpec, ScoreTable, score_name
from ctrmodels.multitask.checkpoint import WEIGHTS, fingerprint
from ctrmodels.multitask.predictions import Predictions
from tasks.config import TuneFusion

OTHER = "other"
ROUNDING = 1e-6
"""Of a value that is told from its standardised copy, as a share of the field's mean: values nearer to 0 are 0."""


@dataclass(frozen=True)
class Logged:
    """N rows of a role or window.

    Attributes:
        table: their scores, labels and lists.
        position: int [N], from 1, where the log showed the row; 0 = unknown.
        propensity: [N] chance that the logging policy showed it there; 0 = unknown.
        fields: [N] values of the fields that the settings name, as text; ``item``'s as ids, under its name.
        item: the field that says what a row shows; ``None`` = the log has none.
    """

    table: ScoreTable
    position: np.ndarray
    propensity: np.ndarray
    fields: Mapping[str, np.ndarray]
    item: str | None

    def take(self, rows: np.ndarray) -> Logged:
        """The rows that the mask ``rows`` [N] selects."""
        return replace(self, table=self.table.take(rows), position=self.position[rows],
                       propensity=self.propensity[rows], fields={k: v[rows] for k, v in self.fields.items()})

    @property
    def items(self) -> np.ndarray | None:
        """[N] what each row shows."""
        return None if self.item is None else self.fields[self.item]


@dataclass(frozen=True)
class Sources:
    """Where the rows come from.

    Attributes:
        chosen: outputs of ``select_model``.
        encoded: outputs of ``encode``.
        scorers: by objective, the outputs of the model that scores it instead of the chosen one.
        columns: what is read of the log beside the scores: what it is to a function, the numeric field.
    """

    chosen: Path
    encoded: Path
    scorers: Mapping[str, Path]
    columns: Sequence[tuple[str, str]] = ()

    @property
    def schema(self) -> Schema:
        """The log's description."""
        return Schema.load(self.chosen / "schema.json")

    def scores(self, role: str) -> ScoreTable:
        """The scores and labels of ``role``, and the columns beside them, alone. Errors as :meth:`read`."""
        schema = self.schema
        folders = {o.name: self.scorers.get(o.name, self.chosen) for o in schema.objectives}
        paths = {f: f / "predictions" / f"{role}.parquet" for f in dict.fromkeys([self.chosen, *folders.values()])}
        tables = {f: Predictions.load(path, schema) for f, path in paths.items()}
        base = tables[self.chosen]
        self._same_rows(self.encoded / role / "row.npy", self._column(role, "row"), base.row)
        scores, models = [], {}
        relative = frozenset(score_name(o) for o in schema.objectives if tables[folders[o.name]].relative)
        for o in schema.objectives:
            folder, name = folders[o.name], score_name(o)
            self._same_rows(paths[folder], tables[folder].row, base.row)
            scores.append(_finite(tables[folder], name, paths[folder]))
            models[name] = fingerprint(folder / WEIGHTS)
        logged = {name: self._logged(schema, role, part, name) for part, name in self.columns}
        return ScoreTable(schema.objectives, np.stack(scores, axis=1), base.labels.astype(np.float64), base.group,
                          models, relative, logged)

    def read(self, role: str, settings: TuneFusion) -> Logged:
        """The rows of ``role`` in the order of the encoded log.

        Raises:
            InputError: a file is not readable, a score is absent or no finite number, a length is not above 0 or a
                price below it, or the files do not have the same rows.
        """
        schema = self.schema
        item = settings.guardrails.item or next(
            (f.name for f in schema.fields if f.kind == "categorical" and f.side == "item"), None)
        named = dict.fromkeys([f for fields in settings.fields.values() for f in fields] + ([item] if item else []))
        table, ids = self.scores(role), self._column(role, "ids")
        fields = {name: self._values(schema, name, ids[:, schema.id_index(name)], name == item) for name in named}
        return Logged(table, self._column(role, "position"), self._column(role, "propensity"), fields, item)

    def _logged(self, schema: Schema, role: str, part: str, name: str) -> np.ndarray:
        """float64 [N] a numeric field in its own unit, as a served model tells it from its input."""
        path = self.encoded / role / "numeric.npy"
        if name not in schema.scales:
            raise InputError(self.chosen / "schema.json", "scales", name, "the scale of this numeric field is absent",
                             "name it in data.fields, and run the stages from `encode` again")
        scale = schema.scales[name]
        values = scale.raw(self._column(role, "numeric")[:, schema.numeric_index(name)].astype(np.float64))
        values[np.abs(values) < ROUNDING * abs(scale.mean)] = 0.0
        wrong = values <= 0 if part == "length" else values < 0
        if wrong.any():
            raise InputError(path, name, float(f"{values[wrong][0]:.6g}"), f"{wrong.sum()} of {len(values)} rows have "
                             f"a {part} that is not {'above 0' if part == 'length' else '0 or more'}",
                             "mend the log, or the field's value in data.fields (null = unknown, which counts as the "
                             f"mean), or name another {part}")
        return values

    def _column(self, role: str, name: str) -> np.ndarray:
        path = self.encoded / role / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(path, name, type(error).__name__, "not a readable column",
                             "run the stage `encode` again") from error

    @staticmethod
    def _same_rows(path: Path, found: np.ndarray, expected: np.ndarray) -> None:
        if not np.array_equal(found, expected):
            raise InputError(path, "row", f"{len(found)} rows", f"not the {len(expected)} rows of the chosen model's "
                             "predictions in their order", "run the stages from `encode` again")

    def _values(self, schema: Schema, name: str, ids: np.ndarray, plain: bool) -> np.ndarray:
        """[N] values of a field: ids if ``plain`` or a number's bucket, else text."""
        field = schema.fields[[f.name for f in schema.fields].index(name)]
        if plain or field.kind == "numeric":
            return np.asarray(ids)
        path = self.encoded / "vocab" / f"{name}.parquet"
        try:
            words = pq.read_table(path, columns=["value"])["value"].to_pylist()
        except (OSError, KeyError, ValueError) as error:
            raise InputError(path, name, type(error).__name__, "not a readable vocabulary",
                             "run the stage `encode` again") from error
        return np.array([*("null" if w is None else w for w in words), OTHER])[ids]


def columns(settings: TuneFusion, incumbent: FusionSpec | None) -> tuple[tuple[str, str], ...]:
    """What :class:`Sources` reads of the log: for the functions that are tuned, and for the order in service."""
    of_incumbent = () if incumbent is None else tuple((c.part, c.name) for c in incumbent.columns)
    return tuple(dict.fromkeys((*settings.columns.items(), *of_incumbent)))


def _finite(table: Predictions, name: str, path: Path) -> np.ndarray:
    """Score ``name`` as float64 [N]."""
    if name not in table.scores:
        raise InputError(path, f"score.{name}", "absent", "an objective without a score on all rows",
                         "run the stage `retrain` again")
    broken = ~np.isfinite(table.scores[name])
    if broken.any():
        raise InputError(path, f"score.{name}", float(table.scores[name][broken][0]),
                         f"{broken.sum()} scores are no finite numbers", "lower training.learning_rate")
    return table.scores[name].astype(np.float64)
