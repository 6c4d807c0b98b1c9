"""A fusion as a torch module, for exported models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch

import torch
from torch import Tensor, nn

from ctrmodels.errors import InputError
from ctrmodels.fusion.normalisers import Bounded, Isotonic, Normaliser, Platt, Quantile, RankInList
from ctrmodels.fusion.spec import FusionSpec


class FusedGraph(nn.Module):
    """What :meth:`FusionSpec.score` does, on tensors and without its checks.

    It calculates in double precision, which costs nothing beside the model: single precision would lose the
    digits that decide between close rows.
    """

    units: Tensor
    weights: Tensor

    def __init__(self, spec: FusionSpec) -> None:
        super().__init__()
        self._function = spec.function
        self._names = [s.name for s in spec.scores]
        self.maps = nn.ModuleList([tensor_map(s.normaliser) for s in spec.scores])
        _constant(self, "units", [s.unit for s in spec.scores])
        _constant(self, "weights", [s.weight for s in spec.scores])

    def forward(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Fused score, float32 [B], of the scores and columns by name, [B] each. The B rows are taken for one list."""
        columns = [normalise(scores[name].double()) for name, normalise in zip(self._names, self.maps, strict=True)]
        return self._function.graph(torch.stack(columns, dim=1) / self.units, self.weights).float()


@singledispatch
def tensor_map(normaliser: Normaliser) -> nn.Module:
    """The map of a normaliser on float64 tensors [B]; new kinds are registered here.

    Raises:
        InputError: the kind is not registered.
    """
    raise InputError("fusion", "normaliser", normaliser.kind, "has no form on tensors", "fuse by FusionSpec.score")


@tensor_map.register
def _(normaliser: Platt) -> nn.Module:
    return _Sigmoid(normaliser.slope, normaliser.intercept)


@tensor_map.register(Quantile)
@tensor_map.register(Isotonic)
def _(normaliser: Quantile | Isotonic) -> nn.Module:
    return _Lines(normaliser.x, normaliser.y)


@tensor_map.register
def _(normaliser: RankInList) -> nn.Module:
    return _Rank()


@tensor_map.register
def _(normaliser: Bounded) -> nn.Module:
    return nn.Hardtanh(normaliser.low, normaliser.high)


class _Rank(nn.Module):
    """The share of all rows that each outranks, ties and itself counting half."""

    def forward(self, scores: Tensor) -> Tensor:
        above = (scores[None, :] > scores[:, None]).to(scores.dtype).sum(1)
        tied = (scores[None, :] == scores[:, None]).to(scores.dtype).sum(1)
        return 1 - (above + tied / 2) / scores.shape[0]


class _Sigmoid(nn.Module):
    """sigmoid(slope · logit(p) + intercept)."""

    def __init__(self, slope: float, intercept: float) -> None:
        super().__init__()
        self._slope, self._intercept = slope, intercept

    def forward(self, scores: Tensor) -> Tensor:
        p = scores.clamp(1e-12, 1 - 1e-12)
        return torch.sigmoid(self._slope * (torch.log(p) - torch.log1p(-p)) + self._intercept)


class _Lines(nn.Module):
    """Lines between knots and constants outside, as the sum of every line's rise up to the score: no search.

    Args:
        x, y: the knots, x rising.
    """

    x: Tensor
    width: Tensor
    rise: Tensor

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        super().__init__()
        knots = torch.tensor([x, y], dtype=torch.float64)
        self._first = float(y[0])
        _constant(self, "x", knots[0, :-1].tolist())
        _constant(self, "width", knots[0].diff().tolist())
        _constant(self, "rise", knots[1].diff().tolist())

    def forward(self, scores: Tensor) -> Tensor:
        return self._first + ((scores[:, None] - self.x) / self.width).clamp(0, 1) @ self.rise


def _constant(module: nn.Module, name: str, values: Sequence[float]) -> None:
    """Register a buffer of ``module``."""
    module.register_buffer(name, torch.tensor(values, dtype=torch.float64))
