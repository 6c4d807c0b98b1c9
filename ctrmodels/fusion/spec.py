"""FusionSpec: everything a server needs to turn a model's scores into the one score it orders by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion.functions import Column, FusionFunction, function_from_json
from ctrmodels.fusion.normalisers import Normaliser, normaliser_from_json


@dataclass(frozen=True)
class FusedScore:
    """One of the scores that are fused, or a column of the log that a function has beside them.

    Attributes:
        name: the model's name for it, such as ``like@all``; of a column that of its numeric field, in whose own unit
            its values are given.
        normaliser: the fitted map that is applied first.
        unit: mean of the normalised score on the fit window; divided by it, so that all scores average 1
            and equal weights mean equal influence.
        weight: its weight.
        model: fingerprint of the model that the numbers were fitted for, "" = not known. No model gives a column.
        part: ``score``, or what the column is to the function.
    """

    name: str
    normaliser: Normaliser
    unit: float
    weight: float = 1.0
    model: str = ""
    part: Literal["score"] | Column = "score"

    def normalise(self, scores: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """The score as the fusion function gets it: around 1, 2 = twice as likely as an average row."""
        return self.normaliser(scores, groups) / self.unit


@dataclass(frozen=True)
class FusionSpec:
    """A fusion function with its weights and normalisers. Its output orders rows; it is no probability.

    Attributes:
        function: how the normalised scores are combined.
        scores: what is combined.
        fitted_on: the window its numbers come from: role, rows, groups, digest of the predictions.
    """

    function: FusionFunction
    scores: tuple[FusedScore, ...]
    fitted_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    def predicted(self) -> tuple[FusedScore, ...]:
        """The scores that models give."""
        return tuple(s for s in self.scores if s.part == "score")

    @property
    def columns(self) -> tuple[FusedScore, ...]:
        """What the log gives."""
        return tuple(s for s in self.scores if s.part != "score")

    def places(self, function: FusionFunction) -> list[int]:
        """Which of the scores ``function`` fuses, in its order: the models', then its own column."""
        return [i for i, s in enumerate(self.scores) if s.part in ("score", function.column)]

    def normalise(self, columns: Mapping[str, np.ndarray], groups: np.ndarray | None = None) -> np.ndarray:
        """[N, K] normalised scores from raw ones by name, [N] each, and the list of each row.

        Raises:
            KeyError: a score is absent.
            ValueError: a score is relative and there are no lists.
        """
        return np.stack([s.normalise(columns[s.name], groups) for s in self.scores], axis=1)

    def score(self, columns: Mapping[str, np.ndarray], groups: np.ndarray | None = None,
              models: Mapping[str, str] | str = "") -> np.ndarray:
        """[N] fused score from raw model scores, and columns of the log, by name; larger ranks higher.

        Args:
            columns: [N] each; those of the log in their own unit.
            groups: [N] the list of each row, for functions that need it.
            models: fingerprint of the model that gave the scores, or one per predicted score. A spec that names its
                models scores nothing else, since another model's scores have another scale.

        Raises:
            KeyError: a score is absent.
            InputError: a score comes from another model than the spec was fitted for.
            ValueError: a score does not suit the function, or it needs lists and there are none.
        """
        self.check_models(models)
        return self.function.score(self.normalise(columns, groups), [s.weight for s in self.scores], groups)

    def check_models(self, models: Mapping[str, str] | str) -> None:
        """Refuse the scores of other models than the spec was fitted for.

        Raises:
            InputError: a fingerprint differs, or only one side has it.
        """
        for s in self.predicted:
            found = models if isinstance(models, str) else models.get(s.name, "")
            if found != s.model:
                raise InputError("fusion", f"model of {s.name}", found[:12],
                                 f"the fusion was fitted for {s.model[:12]!r}",
                                 "tune the fusion for this model, or give the scores and fingerprint of that one")

    def with_weights(self, function: FusionFunction, weights: Sequence[float]) -> FusionSpec:
        """The normalised scores that ``function`` fuses under its weights, one per score."""
        kept = [self.scores[i] for i in self.places(function)]
        return replace(self, function=function,
                       scores=tuple(replace(s, weight=w) for s, w in zip(kept, weights, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """As plain data that :meth:`from_json` reads back exactly."""
        return {
            "function": self.function.to_json(),
            "scores": [{"name": s.name, "part": s.part, "weight": s.weight, "unit": s.unit, "model": s.model,
                        "normaliser": s.normaliser.to_json()}
                       for s in self.scores],
            "fitted_on": dict(self.fitted_on),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FusionSpec:
        """Rebuild what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such data.
        """
        scores = tuple(FusedScore(s["name"], normaliser_from_json(s["normaliser"]), s["unit"], s["weight"], s["model"],
                                  s["part"]) for s in raw["scores"])
        return cls(function_from_json(raw["function"]), scores, dict(raw["fitted_on"]))

    @classmethod
    def load(cls, path: Path) -> FusionSpec:
        """Read the recommended spec from ``fusion.json``.

        Raises:
            InputError: the file is absent or holds no spec.
        """
        try:
            return cls.from_json(json.loads(path.read_text())["spec"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "spec", type(error).__name__, "not a readable fusion",
                             "run the stage `tune_fusion` again") from error
