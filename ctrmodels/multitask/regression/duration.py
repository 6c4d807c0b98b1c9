"""Values in units of what their duration bucket is worth."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctrmodels.multitask.regression.base import Target, checked

PRIOR_ROWS = 20.0  # of the overall mean beside every bucket's own rows


class PerDuration(Target):
    """The ratio of a value to the mean value of rows of like duration, by its squared error.

    Watch time grows with the length of the video, whoever watches: learned as it is, length is what a model learns
    first. The ratio says how much longer than usual for such a length somebody watches; ``E[y]`` is it times the
    bucket's mean. As the completion ratio of PLE (RecSys 2020, section 3.1), with the bucket's mean in the place of the
    length, so that any bucketised field serves and nobody needs to finish long videos; the buckets are those of
    "Deconfounding Duration Bias in Watch-time Prediction for Video Recommendation", KDD 2022, section 4.

    Args:
        column: of the duration in ``ids``.
        vocab: number of its buckets.

    Attributes:
        means: [vocab], mean training value of each bucket, drawn towards the overall one where rows are few.
        sd: standard deviation of the ratio.
    """

    known: ClassVar[int] = 1
    means: Tensor
    sd: Tensor

    def __init__(self, column: int, vocab: int) -> None:
        super().__init__()
        self.column = column
        self.register_buffer("means", torch.ones(vocab))
        self.register_buffer("sd", torch.tensor(1.0))

    def fit(self, values: np.ndarray, ids: np.ndarray | None = None) -> None:
        """See :class:`Target`."""
        if ids is None:
            raise ValueError("a target per duration is fitted to the rows' ids as well")
        values, bucket = checked(values), ids[:, self.column]
        total, rows = (np.bincount(bucket, weight, len(self.means)) for weight in (values, None))
        means = (total + PRIOR_ROWS * values.mean()) / (rows + PRIOR_ROWS)
        self.means.copy_(torch.from_numpy(means))
        self.sd.fill_(float((values / means[bucket]).std()) or 1.0)

    def offset(self, ids: Tensor) -> Tensor:
        """The bucket's mean, [B, 1]."""
        return self.means[ids[:, self.column].long()].unsqueeze(1)

    def loss(self, output: Tensor, value: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B, 2], the mean behind the head's number."""
        z, mean = output.unbind(1)
        return (z - (value / mean - 1) / self.sd).square()

    def expected(self, output: Tensor) -> Tensor:
        """See :class:`Target`; ``output`` [B, 2]."""
        z, mean = output.unbind(1)
        return mean * (1 + self.sd * z).clamp(min=0.0)
