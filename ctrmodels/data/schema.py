"""What a model needs to know of a log: its fields, their id spaces, its objectives and its row counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ctrmodels.errors import InputError

ROLES = ("train", "arch", "valid", "test")
Role = Literal["train", "arch", "valid", "test"]


@dataclass(frozen=True)
class Field:
    """One input column of the encoded log.

    Attributes:
        name: column name in the log.
        kind: ``categorical``, ``numeric`` or ``sequence``.
        vocab: number of ids. Categorical: ids ``0 .. vocab-1`` by falling frequency on ``train``, the last
            one for out-of-vocabulary values. Numeric: number of quantile buckets, the last one for missing; 0 =
            the value itself is all that models get.
            Sequence: that of the field it is made of, or of its own steps.
        side: whom the field describes: ``user``, ``item`` or ``context``.
        of: for a sequence, the categorical field whose ids (and embedding) its steps use; ``None`` = the
            steps have an id space of their own.
        max_length: for a sequence, the number of steps kept.
    """

    name: str
    kind: Literal["categorical", "numeric", "sequence"]
    vocab: int
    side: Literal["user", "item", "context"] = "context"
    of: str | None = None
    max_length: int = 0


@dataclass(frozen=True)
class Scale:
    """How a numeric field is standardised: models get (value - mean) / deviation, and 0 where it is missing.

    Attributes:
        mean, deviation: of its finite values on ``train``; a field that never varies has deviation 0.
    """

    mean: float
    deviation: float

    def raw(self, standardised: Any) -> Any:
        """Values in the log's unit, of an array or tensor in float64; a missing one is the mean."""
        return self.mean + self.deviation * standardised


@dataclass(frozen=True)
class Objective:
    """One label to predict.

    Attributes:
        name: its name.
        kind: ``binary`` or ``regression``.
        after: the parent objective whose positives are this one's sample space; ``None`` = all rows.
    """

    name: str
    kind: Literal["binary", "regression"] = "binary"
    after: str | None = None

    @property
    def space(self) -> str:
        """Name of the sample space: ``all`` or the parent's name."""
        return self.after or "all"


@dataclass(frozen=True)
class Schema:
    """The encoded log's description, written by ``encode`` as ``schema.json``.

    ``id_fields`` (categorical and bucketised numeric) have one column each in ``ids``; ``numeric_fields``
    have a standardised copy in ``numeric``; ``sequence_fields`` have an id matrix each.

    Attributes:
        fields: every field, in the order of params.yaml.
        objectives: every objective, parents before children.
        rows: row count per role.
        vocab_hash: sha256 over the vocabularies (values, not only sizes).
        roles_hash: sha256 over which row has which role.
        scales: by numeric field, how its values are standardised; empty in logs that no ``encode`` wrote.

    Raises:
        InputError: the parent of an objective is none, is not binary, or is not listed before it, as is the case of
            one at least in a chain that leads back to itself.
    """

    fields: tuple[Field, ...]
    objectives: tuple[Objective, ...]
    rows: Mapping[str, int]
    vocab_hash: str
    roles_hash: str
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        earlier: dict[str, str] = {}
        for o in self.objectives:
            kind = "binary" if o.after is None else earlier.get(o.after)
            if kind != "binary":
                problem = "no objective before this one" if kind is None else f"a {kind}, which nothing can follow"
                raise InputError("schema", f"objectives.{o.name}.after", o.after, problem, "list the binary parent "
                                 "first, and take out a link by which an objective would follow itself")
            earlier[o.name] = o.kind

    @property
    def id_fields(self) -> tuple[Field, ...]:
        """Fields with one id per row, in column order of ``ids``: not numeric ones without buckets."""
        return tuple(f for f in self.fields if f.kind != "sequence" and f.vocab)

    @property
    def numeric_fields(self) -> tuple[Field, ...]:
        """Fields with a standardised value per row, in column order of ``numeric``."""
        return tuple(f for f in self.fields if f.kind == "numeric")

    @property
    def sequence_fields(self) -> tuple[Field, ...]:
        """Fields with a list of ids per row."""
        return tuple(f for f in self.fields if f.kind == "sequence")

    @property
    def id_spaces(self) -> tuple[Field, ...]:
        """Fields that own an id space: the id fields in column order, then sequences without ``of``."""
        return self.id_fields + tuple(f for f in self.sequence_fields if f.of is None)

    @property
    def offsets(self) -> dict[str, int]:
        """Start of every field's ids when all id spaces are laid end to end (a sequence ``of`` a field: its start)."""
        starts, total = {}, 0
        for f in self.id_spaces:
            starts[f.name] = total
            total += f.vocab
        for f in self.sequence_fields:
            if f.of is not None:
                starts[f.name] = starts[f.of]
        return starts

    @property
    def total_vocab(self) -> int:
        """Number of ids of all id spaces together."""
        return sum(f.vocab for f in self.id_spaces)

    @property
    def hash(self) -> str:
        """sha256 over the fields and objectives."""
        body = [[asdict(f) for f in self.fields], [asdict(o) for o in self.objectives]]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def id_index(self, name: str) -> int:
        """Column of field ``name`` in ``ids``.

        Raises:
            KeyError: no id field has that name.
        """
        return _place(self.id_fields, name)

    def numeric_index(self, name: str) -> int:
        """Column of field ``name`` in ``numeric``.

        Raises:
            KeyError: no numeric field has that name.
        """
        return _place(self.numeric_fields, name)

    def objective_index(self, name: str) -> int:
        """Column of objective ``name`` in ``labels``.

        Raises:
            KeyError: no objective has that name.
        """
        return _place(self.objectives, name)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is absent or not a schema.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            return cls(
                fields=tuple(Field(**f) for f in raw["fields"]),
                objectives=tuple(Objective(**o) for o in raw["objectives"]),
                rows=dict(raw["rows"]),
                vocab_hash=raw["vocab_hash"],
                roles_hash=raw["roles_hash"],
                scales={name: Scale(**s) for name, s in raw.get("scales", {}).items()},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "schema", type(error).__name__, "not a readable schema",
                             "run the stage `encode` again") from error


def _place(among: Sequence[Field | Objective], name: str) -> int:
    for i, one in enumerate(among):
        if one.name == name:
            return i
    raise KeyError(name)
