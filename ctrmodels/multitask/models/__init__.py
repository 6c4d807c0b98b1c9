"""The named multi-objective models, one file per system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.models.aitm import AITMOptions, aitm
from ctrmodels.multitask.models.dbmtl import DBMTLOptions, dbmtl
from ctrmodels.multitask.models.dcrnn import DCRNNOptions, dcrnn
from ctrmodels.multitask.models.deepmcp import DeepMCPOptions, deepmcp
from ctrmodels.multitask.models.dupn import DUPNOptions, dupn
from ctrmodels.multitask.models.esm2 import ESM2Options, esm2
from ctrmodels.multitask.models.esmm import esmm
from ctrmodels.multitask.models.mixtures import MixtureOptions, mmoe, mmoe_esmm, omoe
from ctrmodels.multitask.models.nmtr import NMTROptions, nmtr
from ctrmodels.multitask.models.ple import PLEOptions, cgc, ple
from ctrmodels.multitask.models.shared_bottom import shared_bottom
from ctrmodels.multitask.models.single import single
from ctrmodels.multitask.models.youtube import YouTubeOptions, youtube
from ctrmodels.multitask.one_score import ONE_SCORE, OneScoreModel, score_loss
from ctrmodels.multitask.parts import ModelConfig, NoOptions, Parts, Site
from ctrmodels.multitask.regression import Target, build_target
from ctrmodels.multitask.requirements import attended
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.separate import SeparateEncoders, SeparateWide


@dataclass(frozen=True)
class Blueprint:
    """A named model.

    Attributes:
        parts: makes its parts.
        options: class of the settings that only it has.
        encoder: class of its encoder.
        wide: class of its linear part.
        crosses: whether the trunk multiplies features by each other, so that they come to it without dropout: on the
            factors of a product it would change the product's mean.
    """

    parts: Callable[[Site], Parts]
    options: Callable[..., Any] = NoOptions
    encoder: type[FeatureEncoder | SeparateEncoders] = FeatureEncoder
    wide: type[WideHead | SeparateWide] = WideHead
    crosses: bool = False


MODELS: Mapping[str, Blueprint] = {
    "single": Blueprint(single, encoder=SeparateEncoders, wide=SeparateWide),
    "shared_bottom": Blueprint(shared_bottom),
    "omoe": Blueprint(omoe, MixtureOptions),
    "mmoe": Blueprint(mmoe, MixtureOptions),
    "cgc": Blueprint(cgc, PLEOptions),
    "ple": Blueprint(ple, PLEOptions),
    "esmm": Blueprint(esmm),
    "mmoe_esmm": Blueprint(mmoe_esmm, MixtureOptions),
    "esm2": Blueprint(esm2, ESM2Options),
    "dbmtl": Blueprint(dbmtl, DBMTLOptions),
    "aitm": Blueprint(aitm, AITMOptions),
    "youtube": Blueprint(youtube, YouTubeOptions),
    "dupn": Blueprint(dupn, DUPNOptions),
    "deepmcp": Blueprint(deepmcp, DeepMCPOptions),
    "nmtr": Blueprint(nmtr, NMTROptions),
    "dcrnn": Blueprint(dcrnn, DCRNNOptions, crosses=True),
}


def options_of(name: str) -> Callable[..., Any]:
    """Class of the settings that only the model ``name`` has.

    Raises:
        KeyError: unknown model.
    """
    return ONE_SCORE[name] if name in ONE_SCORE else MODELS[name].options


def build(name: str, schema: Schema, spec: ArchSpec, config: ModelConfig) -> MultiObjectiveModel | OneScoreModel:
    """The model ``name``, a key of ``MODELS`` or of ``ONE_SCORE``; see :func:`build_model`.

    Raises:
        InputError: as there, or a grade or weight for an objective that the log does not have.
    """
    if name not in ONE_SCORE:
        return build_model(name, schema, spec, config)
    loss = score_loss(name, schema, config.options)
    encoder = FeatureEncoder(schema, spec, config.dropout, config.l2, attended=attended(schema, config.history))
    wide = WideHead(schema, spec, loss.width, config.gate_init)
    return OneScoreModel(schema, encoder, wide, (*config.bottom, *config.tower), loss, config.dropout)


def build_model(name: str, schema: Schema, spec: ArchSpec, config: ModelConfig) -> MultiObjectiveModel:
    """The multi-objective model ``name`` on the architecture ``spec``.

    Args:
        name: a key of ``MODELS``.
        schema: the log; its objectives become the heads.
        spec: embedding and interactions.
        config: sizes.

    Raises:
        InputError: unknown model, a loss weight or a target for an objective that the log does not have, or a model
            or target that needs what the log or its options do not have, such as a chain of objectives.
    """
    if name not in MODELS:
        raise InputError("params.yaml", "retrain.models", name, "unknown model",
                         f"use {', '.join((*MODELS, *ONE_SCORE))}")
    names = [o.name for o in schema.objectives]
    for unknown in sorted(set(config.loss_weights) - set(names)):
        raise InputError("params.yaml", "retrain.loss_weights", unknown, "no such objective",
                         f"use {', '.join(names)}")
    targets = _targets(schema, config)
    blueprint = MODELS[name]
    options = blueprint.options() if config.options is None else config.options
    seen = attended(schema, config.history)
    encoder = blueprint.encoder(schema, spec, 0.0 if blueprint.crosses else config.dropout, config.l2, attended=seen)
    parts = blueprint.parts(Site(schema, spec, config, options, encoder.width, len(seen.histories) * spec.out_dim))
    wide = blueprint.wide(schema, spec, len(names) + len(parts.further), config.gate_init)
    return MultiObjectiveModel(schema, encoder, wide, parts, config.dropout, config.loss_weights, targets)


def _targets(schema: Schema, config: ModelConfig) -> dict[str, Target]:
    """Regression objective → its target."""
    names = [o.name for o in schema.objectives if o.kind == "regression"]
    for unknown in sorted(set(config.regression) - set(names)):
        raise InputError("params.yaml", "retrain.regression", unknown, "no regression objective of that name",
                         f"use {', '.join(names)}" if names else "take it out: all objectives are binary")
    return {n: build_target(config.regression.get(n, "log"), schema, config.duration) for n in names}
