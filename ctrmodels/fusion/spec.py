"""FusionSpec: everything a server needs to turn a model's scores into the one score it orders by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion.functions import FusionFunction, function_from_json
from ctrmodels.fusion.normalisers import Normaliser, normaliser_from_json


@dataclass(frozen=True)
class FusedScore:
    """One of the scores that are fused.

    Attributes:
        name: the model's name for it, such as ``like@all``.
        normaliser: the fitted map that is applied first.
        unit: mean of the normalised score on the fit window; divided by it, so that all scores average 1
            and equal weights mean equal influence.
        weight: its weight.
        model: fingerprint of the model that the numbers were fitted for, "" = not known.
    """

    name: str
    normaliser: Normaliser
    unit: float
    weight: float = 1.0
    model: str = ""

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

    def normalise(self, columns: Mapping[str, np.ndarray], groups: np.ndarray | None = None) -> np.ndarray:
        """[N, K] normalised scores from raw ones by name, [N] each, and the list of each row.

        Raises:
            KeyError: a score is absent.
            ValueError: a score is relative and there are no lists.
        """
        return np.stack([s.normalise(columns[s.name], groups) for s in self.scores], axis=1)

    def score(self, columns: Mapping[str, np.ndarray], groups: np.ndarray | None = None,
              models: Mapping[str, str] | str = "") -> np.ndarray:
        """[N] fused score from raw model scores by name; larger ranks higher.

        Args:
            columns: [N] each.
            groups: [N] the list of each row, for functions that need it.
            models: fingerprint of the model that gave the scores, or one per score. A spec that names its models
                scores nothing else, since another model's scores have another scale.

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
        for s in self.scores:
            found = models if isinstance(models, str) else models.get(s.name, "")
            if found != s.model:
                raise InputError("fusion", f"model of {s.name}", found[:12],
                                 f"the fusion was fitted for {s.model[:12]!r}",
                                 "tune the fusion for this model, or give the scores and fingerprint of that one")

    def with_weights(self, function: FusionFunction, weights: Sequence[float]) -> FusionSpec:
        """The same normalised scores under another function and weights, one per score."""
        scores = tuple(replace(s, weight=w) for s, w in zip(self.scores, weights, strict=True))
        return replace(self, function=function, scores=scores)

    def to_json(self) -> dict[str, Any]:
        """As plain data that :meth:`from_json` reads back exactly."""
        return {
            "function": self.function.to_json(),
            "scores": [{"name": s.name, "weight": s.weight, "unit": s.unit, "model": s.model,
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
        scores = tuple(FusedScore(s["name"], normaliser_from_json(s["normaliser"]), s["unit"], s["weight"], s["model"])
                       for s in raw["scores"])
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
