"""Linear heads: what fields, and gated interactions, add to a logit by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.archspec import ArchSpec, Interaction
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.norm import BatchNorm
from ctrmodels.nn.products import Interacting
from ctrmodels.nn.table import Table
from ctrmodels.nn.towers import full_precision


class FirstOrder(nn.Module):
    """The linear part: per output a bias, a weight per id and one per numeric value.

    ``logit_k = b_k + sum_f w_k[id_f] + sum_n v_kn x_n``; the weights per id start at zero.
    """

    def __init__(self, schema: Schema, n_outputs: int) -> None:
        super().__init__()
        self.weights = Table(schema.total_vocab, n_outputs)
        self.bias = nn.Parameter(torch.zeros(n_outputs))
        self.numeric = nn.Parameter(torch.zeros(len(schema.numeric_fields), n_outputs))
        self.n_fields = len(schema.id_fields) + len(schema.sequence_fields)

    def flops(self) -> int:
        """Operations per row: an addition per field, and 2 per numeric value."""
        return len(self.bias) * self.n_fields + 2 * self.numeric.numel()

    def forward(self, encoded: Encoded) -> Tensor:
        """[B, K]."""
        sums = self.weights.sums(encoded.lookup)
        if not len(self.numeric):
            return sums + self.bias
        with full_precision(sums):
            return sums + torch.addmm(self.bias, encoded.numeric, self.numeric)


class ProductNorm(BatchNorm):
    """Batch normalisation of interactions without scale and shift, so that a gate alone says how much one counts.

    AutoFIS, KDD 2020, section 3.3; momentum and epsilon as in its published code, since small-variance products blow up
    at PyTorch's defaults. Embeddings start small, so that a product starts smaller by the same factor with every
    further field: so does the root of its epsilon, or that would silence all interactions of three fields and more.

    Args:
        interactions: M of them.
    """

    epsilon: Tensor

    def __init__(self, interactions: Sequence[Interaction]) -> None:
        super().__init__(len(interactions), momentum=0.01)
        epsilon = [1e-3 * INIT_SD ** (2 * (i.order - 2)) for i in interactions]
        self.register_buffer("epsilon", torch.tensor(epsilon), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M] → [B, M]."""
        x = x.float()
        centre, variance = self.statistics(x) if self.training else (self.running_mean, self.running_var)
        assert centre is not None and variance is not None
        return (x - centre) * (variance + self.epsilon).rsqrt()

    def gated(self, interactions: Interacting, gates: Tensor) -> Tensor:
        """Sum of the normalised interactions by their ``gates`` [M, K] → [B, K]."""
        fused = None
        if self.training and gates.shape[1] == 1 and ranks.count() == 1:
            fused = interactions.gated(gates.squeeze(1), self.epsilon)
        if fused is None:
            with full_precision(gates):
                return self(interactions.values()) @ gates
        total, centre, variance = fused
        self.follow(centre, variance, len(total))
        return total.unsqueeze(1)


class WideHead(FirstOrder):
    """First-order weights, and per output a gate per normalised interaction.

    ``logit_k = first_order_k + sum_m alpha_km BN(product_m)``, see :class:`ProductNorm`.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, n_outputs: int, gate_init: float = 0.1) -> None:
        super().__init__(schema, n_outputs)
        n = len(spec.products)
        self.norm = ProductNorm(spec.products) if n else None
        self.gates = nn.Parameter(torch.full((n, n_outputs), gate_init))

    def flops(self) -> int:
        """First order, and 2 per gate."""
        return super().flops() + 2 * self.gates.numel()

    def forward(self, encoded: Encoded) -> Tensor:
        """[B, K]."""
        out = super().forward(encoded)
        if self.norm is None:
            return out
        interactions, = encoded.interactions
        return out + self.norm.gated(interactions, self.gates)
