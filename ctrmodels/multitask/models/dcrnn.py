"""DCRNN, reconstructed: features crossed by a recurrent network, with a small private state per objective.

Of "Deep Cross network based on RNN for partial parameter sharing" (Zhou and Yu, arXiv 2310.11777) only the abstract was
at hand: a cross network realised by an RNN, parameters shared in part, and what links the tasks captured. All equations
here are ours. It is not the diffusion convolutional RNN for traffic that has the same letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import Parts, Site, Trunk
from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.towers import full_precision

CELLS: dict[str, tuple[Callable[..., nn.RNNCellBase], int]] = {  # with the number of its gates
    "gru": (nn.GRUCell, 3), "lstm": (nn.LSTMCell, 4), "rnn": (nn.RNNCell, 1)}


@dataclass(frozen=True)
class DCRNNOptions:
    """Of DCRNN.

    Attributes:
        units: width of what a tower reads, the shared state and the objective's own together.
        share: of ``units`` that the shared state has.
        steps: T, how often the state is crossed with the features; along ``fields`` every field is a step.
        cell: of all states.
        axis: what the recurrence runs along: ``depth``, every step crossing all features, or ``fields``, one field
            per step in the order of data.fields, which then matters.
        link: whether an objective's state reads that of the objective before it.
        chain: of the probabilities; ``esmm`` needs a binary objective with ``after:``.
    """

    units: int = 64
    share: float = 0.75
    steps: int = 3
    cell: Literal["gru", "lstm", "rnn"] = "gru"
    axis: Literal["depth", "fields"] = "depth"
    link: bool = True
    chain: Literal["independent", "esmm"] = "independent"


class DCRNN(Trunk):
    """A cross network whose depth is a recurrence, shared but for a small state per objective.

    ``h_0 = W x + b``, then T times ``c_t = x * (V h_(t-1) + v)`` and ``h_t = cell(c_t, h_(t-1))`` for the shared state,
    ``h^k_t = cell_k([h_t; h^(k-1)_t], h^k_(t-1))`` for each objective's own, which starts at zero and reads that of the
    objective before it: the order of the objectives is that of the funnel. ``z_k = [h_T; h^k_T]``. A reconstruction.

    Along ``fields`` x is at step t the embedding e_t of one field, and W reads all features all the same.

    Dropout acts on z_k alone. On x it would act on every factor of a product at once: over the masks,
    ``E[(m x_i)^2] = x_i^2 / (1 - p)``, so that what the states are trained on is not what they get when they serve, and
    the gates pass the difference on from step to step.

    Args:
        width_in: W.
        n_objectives: K.
        options: see there; ``steps`` may be 0 here, which crosses nothing.
        n_fields: F, the steps along ``fields``.
        dim: D of a field, which is what a step along ``fields`` reads.
        dropout: on every z_k; x is expected without.
    """

    def __init__(self, width_in: int, n_objectives: int, options: DCRNNOptions, n_fields: int, dim: int,
                 dropout: float = 0.0) -> None:
        super().__init__(options.units, n_objectives)
        common = min(max(round(options.units * options.share), 1), options.units - 1)
        own, crossed = options.units - common, width_in if options.axis == "depth" else dim
        make, gates = CELLS[options.cell]
        self.along_fields, self.linked = options.axis == "fields", options.link
        self.steps = n_fields if self.along_fields else options.steps
        self.start = nn.Linear(width_in, common)
        self.cross = nn.Linear(common, crossed)
        self.cell = make(crossed, common)
        before = [own if options.link and k else 0 for k in range(n_objectives)]
        self.own = nn.ModuleList(make(common + width, own) for width in before)
        self.dropout = Dropout(dropout)
        cells = [(crossed, common), *((common + width, own) for width in before)]
        per_step = sum(2 * gates * state * (width + state) for width, state in cells) + 2 * common * crossed
        self.operations = self.steps * per_step - 2 * common * crossed  # ``cross`` counts once as a layer

    def represent(self, encoded: Encoded) -> list[Tensor]:
        """See :class:`Trunk`."""
        if self.along_fields:
            return self._run(encoded.flat, list(encoded.fields.unbind(1)))
        return self(encoded.flat)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`; along ``depth`` only."""
        return self._run(flat, [flat] * self.steps)

    def _run(self, flat: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        with full_precision(flat):  # what is rounded at every step adds up
            return self._states(flat.float(), [x.float() for x in inputs])

    def _states(self, flat: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        common = _State(self.cell, self.start(flat))
        own = [_State(cell, common.h.new_zeros(flat.shape[0], self.width - common.h.shape[1])) for cell in self.own]
        for x in inputs:
            common.step(x * self.cross(common.h))
            for k, state in enumerate(own):
                state.step(torch.cat([common.h, own[k - 1].h], 1) if self.linked and k else common.h)
        return [self.dropout(torch.cat([common.h, state.h], 1)) for state in own]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The shared state's."""
        for part in (self.start, self.cross, self.cell):
            yield from part.parameters()

    def flops(self) -> int:
        """The cells, and all uses of the cross's layer but one."""
        return self.operations


class _State:
    """The state h [B, H] of a cell, with an LSTM's memory beside it."""

    def __init__(self, cell: nn.Module, h: Tensor) -> None:
        self.cell, self.h = cell, h
        self.memory = torch.zeros_like(h) if isinstance(cell, nn.LSTMCell) else None

    def step(self, x: Tensor) -> None:
        """Move on by the input x [B, W]."""
        if self.memory is None:
            self.h = cast(Tensor, self.cell(x, self.h))
        else:
            self.h, self.memory = cast(Any, self.cell(x, (self.h, self.memory)))


def dcrnn(site: Site) -> Parts:
    """A recurrence for all with a small state each; heads on their own spaces, or in ESMM's chain."""
    options: DCRNNOptions = site.options
    fields = len(site.schema.id_fields) + len(site.schema.sequence_fields)
    trunk = DCRNN(site.width, site.n_objectives, options, fields, site.spec.out_dim, site.config.dropout)
    chain = chains.esmm if options.chain == "esmm" else chains.independent
    return Parts(trunk, chain(site.schema.objectives), site.config.tower)
