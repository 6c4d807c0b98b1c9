"""Interactions that follow a rule instead of a search: what every search has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.search.base import Found, Host, Kind, Part, SearchMethod, SearchRows, configuration
from ctrmodels.search.interaction.columns import IdColumns
from ctrmodels.search.interaction.information import crossed_information
from ctrmodels.search.interaction.trees import split_gains
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class NoPairs:
    """No interactions at all: what the first order and the MLP reach alone."""

    name: ClassVar[str] = "no_pairs"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The empty set."""
        return Found({self.name: ArchSpec.of(rows.schema, self.name, host.dim, interactions=(), seed=seed)})


@dataclass(frozen=True)
class MutualInformation:
    """The pairs whose crossed ids say most of the label beyond what the two fields say alone.

    How that is estimated, and corrected for crosses that are seen a few times each: ``information.py``.

    Attributes:
        shares: of all pairs, one level each.
        rows: of ``train`` and ``arch`` that are read at most, drawn at random.
    """

    shares: tuple[float, ...] = (0.5, 0.25, 0.1)
    rows: int = 1_000_000

    name: ClassVar[str] = "mutual_information"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per share; a pair's strength is its information in nats.

        Raises:
            InputError: no row's label is known, or all labels are the same.
        """
        columns = IdColumns.draw(rows.both(), host.objective, self.rows, seed)
        return ranked(self, rows, host, seed, self.shares, crossed_information(columns))


@dataclass(frozen=True)
class SplitGain:
    """The pairs whose fields boosted trees split on together, beyond what trees of single fields reach.

    How a pair's gain is read from the trees: ``trees.py``.

    Attributes:
        shares: of all pairs, one level each.
        rows: of ``train`` and ``arch`` that are read at most, drawn at random.
        trees: of single fields, and as many more that may cross fields.
        depth: of a tree.
        learning_rate: of the boosting.
    """

    shares: tuple[float, ...] = (0.5, 0.25, 0.1)
    rows: int = 1_000_000
    trees: int = 100
    depth: int = 4
    learning_rate: float = 0.1

    name: ClassVar[str] = "split_gain"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per share; a pair's strength is its share of the gain of all pairs.

        Raises:
            InputError: no row's label is known, or all labels are the same.
        """
        columns = IdColumns.draw(rows.both(), host.objective, self.rows, seed)
        gains = split_gains(columns, self.trees, self.depth, self.learning_rate, seed)
        return ranked(self, rows, host, seed, self.shares, gains)


def ranked(method: SearchMethod, rows: SearchRows, host: Host, seed: int, shares: Sequence[float],
           scores: np.ndarray) -> Found:
    """The pairs of the highest ``scores`` [M], in the order of ``all_pairs``: one spec per share, of one pair at least.

    Ties go to the first pair.
    """
    pairs = all_pairs(rows.schema)
    order = np.argsort(-scores, kind="stable")
    found = Found({}, [{"scores": [round(float(s), 8) for s in scores]}])
    for share in shares:
        kept = sorted(order[:max(round(share * len(pairs)), 1)].tolist())
        found.specs[f"{method.name}-{share:g}"] = ArchSpec.of(
            rows.schema, method.name, host.dim, seed=seed, config={**configuration(method), "share": share},
            interactions=tuple(replace(pairs[k], strength=round(float(scores[k]), 8)) for k in kept))
    return found
