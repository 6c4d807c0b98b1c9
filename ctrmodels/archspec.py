"""ArchSpec: the only thing that passes from a search to a retraining.

One JSON document and, where arrays are needed, one ``.npz`` beside it. A spec may speak of the embedding, of
the interactions, or of both; specs that speak of different parts merge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError

VERSION = 1
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


@dataclass(frozen=True, order=True)
class Interaction:
    """One explicit feature interaction.

    Attributes:
        fields: indices into ``Schema.id_fields + Schema.sequence_fields``, rising.
        op: ``inner``: the inner product of the two embeddings.
        strength: the searched gate's final value, for the report; the retraining starts gates afresh.
    """

    fields: tuple[int, ...]
    op: Literal["inner"] = "inner"
    strength: float = 1.0


@dataclass(frozen=True)
class Cost:
    """What the host network built from a spec costs.

    Attributes:
        parameters_embedding: stored embedding values (pruned ones take none) and projections.
        parameters_other: all other trainable values.
        flops: floating-point operations of one row's forward pass, additions and multiplications.
        bytes: stored size in float32; a value mask adds one bit per value of its table.
    """

    parameters_embedding: int
    parameters_other: int
    flops: int
    bytes: int

    @property
    def parameters(self) -> int:
        """All stored values."""
        return self.parameters_embedding + self.parameters_other


@dataclass(frozen=True, eq=False)
class ArchSpec:
    """What a search found.

    Attributes:
        method: name of the search, or names joined by ``+`` after a merge.
        config: the search's configuration.
        seed: the search's seed.
        schema_hash, vocab_hash, roles_hash: the encoded log that it was found on; another one is refused.
        fields: names of the fields that interaction indices refer to.
        out_dim: width D at which embeddings enter interactions and MLP.
        alloc: the embedding's allocation, or ``None`` if the spec does not speak of it.
        interactions: the kept interactions, or ``None`` if the spec does not speak of them.
        cost: of the host network, filled in by the retraining.
        result: metrics of the search.
    """

    method: str
    schema_hash: str
    vocab_hash: str
    roles_hash: str
    fields: tuple[str, ...]
    out_dim: int
    alloc: Alloc | None = None
    interactions: tuple[Interaction, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    cost: Cost | None = None
    result: Mapping[str, float] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def of(cls, schema: Schema, method: str, out_dim: int, **parts: Any) -> ArchSpec:
        """A spec for the log that ``schema`` describes."""
        return cls(method=method, schema_hash=schema.hash, vocab_hash=schema.vocab_hash,
                   roles_hash=schema.roles_hash, fields=model_fields(schema), out_dim=out_dim, **parts)

    @classmethod
    def dense(cls, schema: Schema, dim: int) -> ArchSpec:
        """The unsearched control: width ``dim`` everywhere and every pair of fields."""
        return cls.of(schema, "dense", dim, alloc=Uniform(dim), interactions=all_pairs(schema))

    def check(self, schema: Schema, where: object = "archspec") -> None:
        """Refuse to be used on another log than the one it was found on.

        Raises:
            InputError: a hash differs.
        """
        for name, mine, theirs in (("schema_hash", self.schema_hash, schema.hash),
                                   ("vocab_hash", self.vocab_hash, schema.vocab_hash),
                                   ("roles_hash", self.roles_hash, schema.roles_hash)):
            if mine != theirs:
                raise InputError(where, name, mine[:12], f"the encoded log has {theirs[:12]}",
                                 "run the search again on this log")

    @property
    def id(self) -> str:
        """sha256 of what a retraining would build; ignores method, seed, cost and results."""
        document, arrays = self._document()
        body = {k: document[k] for k in ("version", "schema_hash", "vocab_hash", "roles_hash", "out_dim",
                                         "embedding", "interactions")}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def _document(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays: dict[str, np.ndarray] = {}
        embedding: dict[str, Any] | None = None
        if isinstance(self.alloc, Uniform):
            embedding = {"kind": "uniform", "dim": self.alloc.dim}
        elif isinstance(self.alloc, PerField):
            embedding = {"kind": "per_field", "dims": list(self.alloc.dims)}
        elif isinstance(self.alloc, PerBucket):
            embedding = {"kind": "per_bucket", "cuts": [list(c) for c in self.alloc.cuts],
                         "dims": [list(d) for d in self.alloc.dims], "shared": self.alloc.shared}
        elif isinstance(self.alloc, FieldDimMask):
            embedding = {"kind": "field_dim_mask",
                         "kept": [np.flatnonzero(row).tolist() for row in self.alloc.mask]}
        elif isinstance(self.alloc, ValueMask):
            embedding = {"kind": "per_value_mask", "shape": list(self.alloc.mask.shape),
                         "kept": int(self.alloc.mask.sum()), "rewind": self.alloc.init is not None}
            arrays["mask"] = np.packbits(self.alloc.mask)
            if self.alloc.init is not None:
                arrays["init"] = self.alloc.init.astype(np.float32)
        elif isinstance(self.alloc, CentralResidual):
            embedding = {"kind": "central_residual", "item": self.alloc.item, "fusion": self.alloc.fusion,
                         "lambda_r": self.alloc.lambda_r}
            arrays |= {"neighbours": self.alloc.neighbours.astype(np.int32),
                       "weights": self.alloc.weights.astype(np.float32)}
        interactions = None if self.interactions is None else [
            {"fields": list(i.fields), "op": i.op, "strength": round(i.strength, 8)} for i in self.interactions]
        return {
            "version": self.version, "method": self.method, "config": dict(self.config), "seed": self.seed,
            "schema_hash": self.schema_hash, "vocab_hash": self.vocab_hash, "roles_hash": self.roles_hash,
            "fields": list(self.fields), "out_dim": self.out_dim, "embedding": embedding,
            "interactions": interactions, "cost": None if self.cost is None else vars(self.cost),
            "result": {k: float(v) for k, v in self.result.items()},
        }, arrays

    def save(self, folder: Path) -> None:
        """Write ``archspec.json`` and, where there are arrays, ``archspec.npz`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        document, arrays = self._document()
        if arrays:
            np.savez(folder / "archspec.npz", **arrays)  # type: ignore[arg-type]
        (folder / "archspec.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ArchSpec:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a file is absent, damaged, or of another version.
        """
        path = folder / "archspec.json"
        try:
            raw = json.loads(path.read_text())
            if raw["version"] != VERSION:
                raise InputError(path, "version", raw["version"], f"this release reads version {VERSION}",
                                 "run the search again")
            alloc = _alloc(raw["embedding"], raw["out_dim"], folder)
            interactions = None if raw["interactions"] is None else tuple(
                Interaction(tuple(i["fields"]), i["op"], i["strength"]) for i in raw["interactions"])
            return cls(
                method=raw["method"], config=raw["config"], seed=raw["seed"],
                schema_hash=raw["schema_hash"], vocab_hash=raw["vocab_hash"], roles_hash=raw["roles_hash"],
                fields=tuple(raw["fields"]), out_dim=raw["out_dim"], alloc=alloc, interactions=interactions,
                cost=None if raw["cost"] is None else Cost(**raw["cost"]), result=raw["result"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "archspec", type(error).__name__, "absent or not readable",
                             "run the search again") from error


def _alloc(raw: dict[str, Any] | None, out_dim: int, folder: Path) -> Alloc | None:
    if raw is None:
        return None
    if raw["kind"] == "uniform":
        return Uniform(raw["dim"])
    if raw["kind"] == "per_field":
        return PerField(tuple(raw["dims"]))
    if raw["kind"] == "per_bucket":
        return PerBucket(tuple(tuple(c) for c in raw["cuts"]), tuple(tuple(d) for d in raw["dims"]), raw["shared"])
    if raw["kind"] == "field_dim_mask":
        mask = np.zeros((len(raw["kept"]), out_dim), bool)
        for row, kept in zip(mask, raw["kept"], strict=True):
            row[kept] = True
        return FieldDimMask(mask)
    if raw["kind"] == "per_value_mask":
        with np.load(folder / "archspec.npz", allow_pickle=False) as arrays:
            rows, dim = raw["shape"]
            mask = np.unpackbits(arrays["mask"], count=rows * dim).astype(bool).reshape(rows, dim)
            return ValueMask(mask, arrays["init"] if raw["rewind"] else None)
    if raw["kind"] == "central_residual":
        with np.load(folder / "archspec.npz", allow_pickle=False) as arrays:
            return CentralResidual(raw["item"], arrays["neighbours"], arrays["weights"], raw["fusion"],
                                   raw["lambda_r"])
    raise ValueError(f"unknown allocation {raw['kind']!r}")


def id_widths(spec: ArchSpec, schema: Schema) -> np.ndarray:
    """float [total_vocab]: how many embedding values of its own every id has, in the layout of ``Schema.offsets``.

    Raises:
        ValueError: the spec does not speak of the embedding.
    """
    alloc, vocab = spec.alloc, [f.vocab for f in schema.id_spaces]
    if isinstance(alloc, Uniform):
        return np.full(schema.total_vocab, float(alloc.dim))
    if isinstance(alloc, PerField):
        return np.repeat(np.array(alloc.dims, float), vocab)
    if isinstance(alloc, FieldDimMask):
        return np.repeat(alloc.mask.sum(1).astype(float), vocab)
    if isinstance(alloc, ValueMask):
        return alloc.mask.sum(1).astype(float)
    if isinstance(alloc, PerBucket):
        widths = np.zeros(schema.total_vocab)
        starts = np.cumsum([0, *vocab])
        for space, begin, end, width, shared in alloc.buckets(schema):
            widths[starts[space] + begin:starts[space] + end] = width / (end - begin) if shared else width
        return widths
    if isinstance(alloc, CentralResidual):
        return np.full(schema.total_vocab, float(spec.out_dim))
    raise ValueError(f"the spec of {spec.method} does not speak of the embedding")


def model_fields(schema: Schema) -> tuple[str, ...]:
    """Names of a model's fields in the order that interactions count them: id fields, then sequences."""
    return tuple(f.name for f in (*schema.id_fields, *schema.sequence_fields))


def all_pairs(schema: Schema) -> tuple[Interaction, ...]:
    """Every pair of fields."""
    return tuple(Interaction(pair) for pair in combinations(range(len(model_fields(schema))), 2))


def merge(a: ArchSpec, b: ArchSpec) -> ArchSpec:
    """One spec that says what ``a`` and ``b`` say.

    Raises:
        InputError: both speak of the same part, or they were found on different logs or widths.
    """
    for name in ("schema_hash", "vocab_hash", "roles_hash", "out_dim"):
        if getattr(a, name) != getattr(b, name):
            raise InputError(f"merge of {a.method} and {b.method}", name, str(getattr(b, name))[:12],
                             f"{a.method} has {str(getattr(a, name))[:12]}",
                             "search both on the same encoded log and width")
    for part in ("alloc", "interactions"):
        if getattr(a, part) is not None and getattr(b, part) is not None:
            raise InputError(f"merge of {a.method} and {b.method}", part, "twice",
                             "both specs speak of this part", "merge specs of different parts")
    return replace(
        a, method=f"{a.method}+{b.method}", config={a.method: dict(a.config), b.method: dict(b.config)},
        alloc=a.alloc if a.alloc is not None else b.alloc,
        interactions=a.interactions if a.interactions is not None else b.interactions,
        cost=None, result={})
