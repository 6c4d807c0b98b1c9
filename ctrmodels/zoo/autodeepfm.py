"""DeepFM with chosen interactions: the host of the searches and their control."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import GatedModel


class AutoDeepFM(GatedModel):
    """First-order weights, gated interactions and an MLP over shared embeddings, for one binary objective.

    ``logit = b + sum_f w[id_f] + sum_m alpha_m BN(product_m) + MLP([e_1 .. e_F; numeric])``

    The retrained network of "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for
    Click-Through Rate Prediction", KDD 2020, equation 4: a DeepFM whose interactions are those of an ArchSpec,
    normalised and gated. With no ``hidden`` widths it is the paper's AutoFM.

    What groups of fields and micro-networks give goes to the MLP, as in "AutoGroup: Automatic Feature Grouping for
    Modelling Explicit High-Order Feature Interactions in CTR Prediction", SIGIR 2020. With no ``hidden`` widths an MLP
    is a linear map, which is there if there are any, since nothing else reads them.

    Shapes: B rows, F fields, D width, M interactions.

    Example::

        spec = ArchSpec.dense(schema, dim=16)
        model = AutoDeepFM(schema, spec, objective="click", hidden=(64, 32))
        model.predict(batch)["click@all"]  # [B] probabilities

    Args:
        schema: the log.
        spec: embedding allocation, interactions and groups.
        objective: the binary objective to predict; its positives count on all rows.
        hidden: widths of the MLP.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        gate_init: where the interactions' gates start.
        embedding: takes the place of the spec's embedding.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 dropout: float = 0.0, l2: float = 0.0, gate_init: float = 0.1,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, spec, objective, dropout, l2, embedding, fields=False)
        self.wide = WideHead(schema, spec, 1, gate_init=gate_init)
        read = hidden or spec.groups or spec.micronets
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1) if read else None

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        logit = self.wide(encoded).squeeze(1)
        return logit if self.deep is None else logit + self.deep(encoded.flat, encoded.constant).squeeze(1)

    @property
    def gated(self) -> nn.Module:
        """The linear part, which has them."""
        return self.wide
