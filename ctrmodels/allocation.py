"""How an embedding's values are allocated to ids: one class per form, each packed as JSON and arrays.

Id spaces are those of ``Schema.id_spaces``, in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ctrmodels.data.schema import Schema

Fusion = Literal["avg", "gcn", "attention"]


@dataclass(frozen=True)
class Uniform:
    """Every id space has the same width."""

    dim: int
    kind: Literal["uniform"] = "uniform"


@dataclass(frozen=True)
class PerField:
    """One width per id space, in the order of ``Schema.id_spaces``; 0 drops the field's embedding."""

    dims: tuple[int, ...]
    kind: Literal["per_field"] = "per_field"


@dataclass(frozen=True)
class PerBucket:
    """One width per range of ids of an id space. Ids rise by falling frequency, so a range is a bucket of popularity.

    Attributes:
        cuts: for every id space, in the order of ``Schema.id_spaces``, the ids at which its next bucket begins, rising;
            one less than its buckets.
        dims: for every id space, the width of each bucket; 0 gives the ids in it no embedding.
        shared: whether the ids in a space's last bucket share one row.
    """

    cuts: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[int, ...], ...]
    shared: bool = False
    kind: Literal["per_bucket"] = "per_bucket"

    def buckets(self, schema: Schema) -> Iterator[tuple[int, int, int, int, bool]]:
        """(id space, first id, behind the last id, width, whether its ids share a row) of every bucket that has ids.

        Raises:
            ValueError: the spaces, cuts and widths do not fit together.
        """
        if not len(self.cuts) == len(self.dims) == len(schema.id_spaces):
            raise ValueError(f"cuts of {len(self.cuts)} and widths of {len(self.dims)} spaces for "
                             f"{len(schema.id_spaces)} id spaces")
        for s, (space, cuts, dims) in enumerate(zip(schema.id_spaces, self.cuts, self.dims, strict=True)):
            edges = (0, *cuts, space.vocab)
            if len(dims) != len(cuts) + 1 or list(edges) != sorted(edges):
                raise ValueError(f"{space.name}: cuts {cuts} of {space.vocab} ids do not make {len(dims)} buckets")
            for n, (a, b, w) in enumerate(zip(edges[:-1], edges[1:], dims, strict=True), 1):
                if b > a:
                    yield s, a, b, w, self.shared and n == len(dims)


@dataclass(frozen=True, eq=False)
class FieldDimMask:
    """Which of the D dimensions the ids of each id space have; the others are zero and are not stored.

    Attributes:
        mask: bool [id spaces, D], rows in the order of ``Schema.id_spaces``; True = kept.
    """

    mask: np.ndarray
    kind: Literal["field_dim_mask"] = "field_dim_mask"


@dataclass(frozen=True, eq=False)
class ValueMask:
    """Single embedding values kept or pruned.

    Attributes:
        mask: bool [total_vocab, D], rows laid out as ``Schema.offsets`` says; True = kept.
        init: float32 [total_vocab, D], the values that the kept entries start from in the retraining
            (``None`` = fresh ones).
    """

    mask: np.ndarray
    init: np.ndarray | None = None
    kind: Literal["per_value_mask"] = "per_value_mask"


@dataclass(frozen=True, eq=False)
class CentralResidual:
    """Ids of one space as a vector shared with their neighbours in a graph, plus a small residual of their own.

    All other id spaces have an ordinary table. What serves is a plain table of the sums, and that is what it costs: as
    much as a uniform width. Training holds a second vector per item.

    Attributes:
        item: the id space whose I ids the graph joins.
        neighbours: int32 [I, K], the ids that an id's shared vector is made of, itself first; -1 = none.
        weights: float32 [I, K], of the graph's edges; 0 where there is none.
        fusion: how the neighbours' vectors are weighed: ``avg``, edges over their sum; ``gcn``, edges over the root
            of both ends' sums; ``attention``, edges times the exponential of the vectors' inner product, normalised.
        lambda_r: weight in the loss of the squared norm of the residuals that a batch touches.
    """

    item: str
    neighbours: np.ndarray
    weights: np.ndarray
    fusion: Fusion = "avg"
    lambda_r: float = 0.0
    kind: Literal["central_residual"] = "central_residual"

    def check(self, schema: Schema) -> None:
        """Refuse a graph that is not of the log's items.

        Raises:
            ValueError: there is no such id space, or the lists do not fit its ids or each other.
        """
        ids = {f.name: f.vocab for f in schema.id_spaces}.get(self.item)
        if ids is None:
            raise ValueError(f"a graph of {self.item!r}, which is no id space of the log")
        near = self.neighbours
        if near.ndim != 2 or len(near) != ids or self.weights.shape != near.shape:
            raise ValueError(f"{self.item}: neighbours {near.shape} and weights {self.weights.shape} of {ids} ids")
        if not np.array_equal(near[:, 0], np.arange(ids)) or near.min() < -1 or near.max() >= ids:
            raise ValueError(f"{self.item}: a list does not begin with its own id, or names one beyond the {ids} ids")
        if not np.array_equal(near >= 0, self.weights > 0):
            raise ValueError(f"{self.item}: edges, and only edges, have weights above 0")
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"unknown fusion {self.fusion!r}; there are {get_args(Fusion)}")


Alloc = Uniform | PerField | PerBucket | FieldDimMask | ValueMask | CentralResidual


def pack(alloc: Alloc) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A JSON document and the arrays of ``alloc``; :func:`unpack` reads them."""
    if isinstance(alloc, Uniform):
        return {"kind": alloc.kind, "dim": alloc.dim}, {}
    if isinstance(alloc, PerField):
        return {"kind": alloc.kind, "dims": list(alloc.dims)}, {}
    if isinstance(alloc, PerBucket):
        return {"kind": alloc.kind, "cuts": [list(c) for c in alloc.cuts], "dims": [list(d) for d in alloc.dims],
                "shared": alloc.shared}, {}
    if isinstance(alloc, FieldDimMask):
        return {"kind": alloc.kind, "dim": alloc.mask.shape[1],
                "kept": [np.flatnonzero(row).tolist() for row in alloc.mask]}, {}
    if isinstance(alloc, ValueMask):
        arrays = {"mask": np.packbits(alloc.mask)}
        if alloc.init is not None:
            arrays["init"] = alloc.init.astype(np.float32)
        return {"kind": alloc.kind, "shape": list(alloc.mask.shape), "kept": int(alloc.mask.sum()),
                "rewind": alloc.init is not None}, arrays
    return {"kind": alloc.kind, "item": alloc.item, "fusion": alloc.fusion, "lambda_r": alloc.lambda_r}, {
        "neighbours": alloc.neighbours.astype(np.int32), "weights": alloc.weights.astype(np.float32)}


def unpack(raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Alloc:
    """What :func:`pack` was given.

    Raises:
        ValueError, KeyError: it is something else.
    """
    kind = raw["kind"]
    if kind == "uniform":
        return Uniform(raw["dim"])
    if kind == "per_field":
        return PerField(tuple(raw["dims"]))
    if kind == "per_bucket":
        return PerBucket(tuple(tuple(c) for c in raw["cuts"]), tuple(tuple(d) for d in raw["dims"]), raw["shared"])
    if kind == "field_dim_mask":
        mask = np.zeros((len(raw["kept"]), raw["dim"]), bool)
        for row, kept in zip(mask, raw["kept"], strict=True):
            row[kept] = True
        return FieldDimMask(mask)
    if kind == "per_value_mask":
        rows, dim = raw["shape"]
        values = np.unpackbits(arrays["mask"], count=rows * dim).astype(bool).reshape(rows, dim)
        return ValueMask(values, arrays["init"] if raw["rewind"] else None)
    if kind == "central_residual":
        return CentralResidual(raw["item"], arrays["neighbours"], arrays["weights"], raw["fusion"], raw["lambda_r"])
    raise ValueError(f"unknown allocation {kind!r}")
