"""ArchSpec: the only thing that passes from a search to a retraining.

One JSON document and, where arrays are needed, one ``.npz`` beside it. A spec may speak of the embedding, of
the interactions, or of both; specs that speak of different parts merge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ctrmodels.allocation import (
    Alloc,
    CentralResidual,
    FieldDimMask,
    PerBucket,
    PerField,
    Uniform,
    ValueMask,
    pack,
    unpack,
)
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError

__all__ = ["Alloc", "ArchSpec", "CentralResidual", "Compensation", "Cost", "FieldDimMask", "Group", "Interaction", "Op",
           "PerBucket", "PerField", "Uniform", "ValueMask", "all_combinations", "all_pairs", "id_widths", "merge",
           "model_fields"]

VERSION = 2
MAIN = ""  # the name of the embedding that all parts of a network share
Op = Literal["inner", "outer", "vector_kernel", "scalar_kernel", "micronet"]
Compensation = Literal["formula", "code"]


@dataclass(frozen=True, order=True)
class Interaction:
    """One explicit interaction of two or more fields.

    Attributes:
        fields: indices into ``Schema.id_fields + Schema.sequence_fields``, rising.
        op: what is made of their embeddings e_1 .. e_p: ``inner``, ``sum_d prod_s e_sd``; ``vector_kernel``, the same
            sum weighted by a learned number per interaction and dimension; ``scalar_kernel``, by one per interaction;
            ``outer``, ``prod_s <e_s, u_s>`` with learned u_1 .. u_p that all interactions of this kind share; or
            ``micronet``, a small network of its own that ``genes`` describe, which gives a vector.
        strength: the searched gate's final value, or the statistic of a rule, for the report; the retraining starts
            gates afresh.
        table: the name of the embedding in ``ArchSpec.tables`` that it reads; empty = the network's own.
        genes: of a micronet, its operations in turn, 1 to 4 as in :mod:`ctrmodels.nn.micronet`.
    """

    fields: tuple[int, ...]
    op: Op = "inner"
    strength: float = 1.0
    table: str = MAIN
    genes: tuple[int, ...] = ()

    @property
    def order(self) -> int:
        """Number of fields."""
        return len(self.fields)


@dataclass(frozen=True, order=True)
class Group:
    """Fields whose weighted sum is raised to a power: one number that holds all their interactions of that order.

    Attributes:
        fields: the members, as in :class:`Interaction`, rising.
        order: the power p; of order 1, the sum itself, a vector.
        table: the name of the embedding in ``ArchSpec.tables`` that it reads; empty = the network's own.
        lambda_c: how much of the fields' own powers is taken away from the power of their sum.
        compensation: of which fields: the members alone (``formula``); or all, and at order 1 as well (``code``).
    """

    fields: tuple[int, ...]
    order: int
    table: str = MAIN
    lambda_c: float = 1.0
    compensation: Compensation = "formula"


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
        groups: groups of fields beside them.
        tables: embeddings of their own that interactions and groups read, by name.
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
    groups: tuple[Group, ...] = ()
    tables: Mapping[str, Alloc] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    cost: Cost | None = None
    result: Mapping[str, float] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        read = {i.table for i in self.interactions or ()} | {g.table for g in self.groups}
        absent = sorted(read - {MAIN, *self.tables})
        if absent:
            raise ValueError(f"interactions of {self.method} read embeddings that it does not have: {absent}")
        if self.interactions is None and (self.groups or self.tables):
            raise ValueError(f"{self.method} speaks of groups or their embeddings, and not of interactions")

    @classmethod
    def of(cls, schema: Schema, method: str, out_dim: int, **parts: Any) -> ArchSpec:
        """A spec for the log that ``schema`` describes."""
        return cls(method=method, schema_hash=schema.hash, vocab_hash=schema.vocab_hash,
                   roles_hash=schema.roles_hash, fields=model_fields(schema), out_dim=out_dim, **parts)

    @classmethod
    def dense(cls, schema: Schema, dim: int) -> ArchSpec:
        """The unsearched control: width ``dim`` everywhere and every pair of fields."""
        return cls.of(schema, "dense", dim, alloc=Uniform(dim), interactions=all_pairs(schema))

    @property
    def products(self) -> tuple[Interaction, ...]:
        """The interactions that are one number each."""
        return tuple(i for i in self.interactions or () if i.op != "micronet")

    @property
    def micronets(self) -> tuple[Interaction, ...]:
        """The interactions that are a vector each."""
        return tuple(i for i in self.interactions or () if i.op == "micronet")

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
        document, arrays = self.pack()
        body = {k: document[k] for k in ("version", "schema_hash", "vocab_hash", "roles_hash", "out_dim",
                                         "embedding", "interactions", "groups", "tables")}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def pack(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A JSON document and named arrays; :meth:`unpack` reads them."""
        parts = {MAIN: self.alloc} if self.alloc is not None else {}
        packed = {name: pack(alloc) for name, alloc in {**parts, **self.tables}.items()}
        arrays = {f"{name}/{key}".lstrip("/"): a for name, (_, found) in packed.items() for key, a in found.items()}
        documents = {name: document for name, (document, _) in packed.items()}
        interactions = None if self.interactions is None else [
            {"fields": list(i.fields), "op": i.op, "strength": round(i.strength, 8), "table": i.table,
             "genes": list(i.genes)} for i in self.interactions]
        return {
            "version": self.version, "method": self.method, "config": dict(self.config), "seed": self.seed,
            "schema_hash": self.schema_hash, "vocab_hash": self.vocab_hash, "roles_hash": self.roles_hash,
            "fields": list(self.fields), "out_dim": self.out_dim, "embedding": documents.pop(MAIN, None),
            "interactions": interactions,
            "groups": [{**vars(g), "fields": list(g.fields)} for g in self.groups],
            "tables": documents, "cost": None if self.cost is None else vars(self.cost),
            "result": {k: float(v) for k, v in self.result.items()},
        }, arrays

    @classmethod
    def unpack(cls, raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ArchSpec:
        """What :meth:`pack` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        def alloc(name: str, document: Mapping[str, Any]) -> Alloc:
            return unpack(document, {k.rpartition("/")[2]: a for k, a in arrays.items()
                                     if k.rpartition("/")[0] == name})

        return cls(
            method=raw["method"], config=raw["config"], seed=raw["seed"], schema_hash=raw["schema_hash"],
            vocab_hash=raw["vocab_hash"], roles_hash=raw["roles_hash"], fields=tuple(raw["fields"]),
            out_dim=raw["out_dim"], alloc=None if raw["embedding"] is None else alloc(MAIN, raw["embedding"]),
            interactions=None if raw["interactions"] is None else tuple(
                Interaction(tuple(i["fields"]), i["op"], i["strength"], i["table"], tuple(i["genes"]))
                for i in raw["interactions"]),
            groups=tuple(Group(**{**g, "fields": tuple(g["fields"])}) for g in raw["groups"]),
            tables={name: alloc(name, document) for name, document in raw["tables"].items()},
            cost=None if raw["cost"] is None else Cost(**raw["cost"]), result=raw["result"])

    def save(self, folder: Path) -> None:
        """Write ``archspec.json`` and, where there are arrays, ``archspec.npz`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        document, arrays = self.pack()
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
            arrays: dict[str, np.ndarray] = {}
            if (folder / "archspec.npz").exists():
                with np.load(folder / "archspec.npz", allow_pickle=False) as stored:
                    arrays = dict(stored)
            return cls.unpack(raw, arrays)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "archspec", type(error).__name__, "absent or not readable",
                             "run the search again") from error


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


def table_of_order(order: int) -> str:
    """The embedding that inner products of ``order`` fields read: the network's own for pairs, else their own."""
    return MAIN if order == 2 else f"order_{order}"


def all_combinations(schema: Schema, order: int, op: Op = "inner", table: str = MAIN) -> tuple[Interaction, ...]:
    """Every interaction of ``order`` fields."""
    return tuple(Interaction(fields, op, table=table)
                 for fields in combinations(range(len(model_fields(schema))), order))


def all_pairs(schema: Schema) -> tuple[Interaction, ...]:
    """Every pair of fields by the inner product of their embeddings."""
    return all_combinations(schema, 2)


def merge(a: ArchSpec, b: ArchSpec) -> ArchSpec:
    """One spec that says what ``a`` and ``b`` say. Groups and tables belong to the interactions.

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
        groups=(*a.groups, *b.groups), tables={**a.tables, **b.tables}, cost=None, result={})
