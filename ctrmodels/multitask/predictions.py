"""The table of a model's scores beside the labels, one row per impression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.spaces import joint_label

SCALE = "scale"  # of the scores, in the file's metadata: "rank" if they are relative


@dataclass(frozen=True)
class Predictions:
    """Scores of N impressions.

    Attributes:
        row: int64 [N], the impression's number in the log.
        group: int64 [N], its list; 0 everywhere if the log has none.
        position: int32 [N], 0 where unknown.
        labels: float32 [N, K] in the order of the objectives, joint on all rows, NaN where unknown.
        scores: ``OBJECTIVE@SPACE`` → float32 [N].
        relative: whether scores say something inside a list only, and are neither probabilities nor amounts.
    """

    row: np.ndarray
    group: np.ndarray
    position: np.ndarray
    labels: np.ndarray
    scores: Mapping[str, np.ndarray]
    relative: bool = False

    @classmethod
    def of(cls, schema: Schema, row: np.ndarray, group: np.ndarray, position: np.ndarray, labels: np.ndarray,
           scores: Mapping[str, np.ndarray], relative: bool = False) -> Predictions:
        """Predictions with the joint labels of ``labels`` [N, K]."""
        joint = np.stack([joint_label(schema, labels, o.name) for o in schema.objectives], axis=1)
        return cls(np.asarray(row), np.asarray(group), np.asarray(position), joint, scores, relative)

    def save(self, path: Path, schema: Schema) -> None:
        """Write parquet: ``row``, ``group``, ``position``, ``label.OBJECTIVE``, ``score.OBJECTIVE@SPACE``,
        and the scale."""
        columns = {"row": self.row, "group": self.group, "position": self.position}
        columns |= {f"label.{o.name}": self.labels[:, i] for i, o in enumerate(schema.objectives)}
        columns |= {f"score.{name}": score for name, score in self.scores.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        pq.write_table(table.replace_schema_metadata({SCALE: "rank"} if self.relative else None), path,
                       compression="zstd")

    @classmethod
    def load(cls, path: Path, schema: Schema) -> Predictions:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is absent, damaged, or lacks a column.
        """
        try:
            table = pq.read_table(path)
            column = {name: table[name].to_numpy() for name in table.column_names}
            labels = np.stack([column[f"label.{o.name}"] for o in schema.objectives], axis=1)
            scores = {name.removeprefix("score."): values for name, values in column.items()
                      if name.startswith("score.")}
            return cls(column["row"], column["group"], column["position"], labels, scores,
                       (table.schema.metadata or {}).get(SCALE.encode()) == b"rank")
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(path, "predictions", type(error).__name__, "not a readable table of predictions",
                             "run the stage `retrain` again") from error
