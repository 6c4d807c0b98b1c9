"""params.yaml as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from ctrmodels.errors import InputError
from tasks.config.chain import Encode, Frequency, Ingest, Report, Select, Validate
from tasks.config.data import Data
from tasks.config.retrain import Retrain, model_and_balancer
from tasks.config.search_embedding import SearchEmbedding
from tasks.config.search_interaction import SearchInteraction
from tasks.config.section import Section
from tasks.config.select_model import SelectModel
from tasks.config.training import Training
from tasks.config.tune_fusion import TuneFusion


class Params(Section):
    """All of params.yaml."""

    data: Data
    training: Training = Training()
    ingest: Ingest = Ingest()
    frequency: Frequency = Frequency()
    validate_: Validate = Field(default=Validate(), alias="validate")
    encode: Encode = Encode()
    search_embedding: SearchEmbedding
    select_embedding: Select = Select()
    search_interaction: SearchInteraction
    select_interaction: Select = Select()
    retrain: Retrain
    select_model: SelectModel = SelectModel()
    tune_fusion: TuneFusion = TuneFusion()
    report: Report = Report()

    @model_validator(mode="after")
    def _cross_checks(self) -> Params:
        names = [o.name for o in self.data.objectives if o.kind == "binary"]
        for section in ("search_embedding", "search_interaction"):
            chosen = getattr(self, section).objective
            if chosen is not None and chosen not in names:
                raise ValueError(f"{section}.objective = {chosen!r} is not a binary objective of data.objectives")
        for key, chosen in (("primary", self.select_model.primary), *(("floors", name)
                                                                      for name in self.select_model.floors)):
            if chosen is not None and chosen not in names:
                raise ValueError(f"select_model.{key} = {chosen!r} is not a binary objective of data.objectives")
        if self.select_model.primary in self.select_model.floors:
            raise ValueError(f"select_model.floors has {self.select_model.primary!r}, the primary, which is maximised "
                             "and needs no floor")
        if self.tune_fusion.primary not in (None, *(o.name for o in self.data.objectives)):
            raise ValueError(f"tune_fusion.primary = {self.tune_fusion.primary!r} is no objective of data.objectives")
        self._check_fusion()
        if not names:
            raise ValueError("data.objectives: at least one binary objective is needed")
        for key, chosen_names in (("search_embedding.methods", self.search_embedding.methods),
                                  ("search_interaction.methods", self.search_interaction.methods),
                                  ("retrain.models", self.retrain.models)):
            for name in chosen_names:
                if chosen_names.count(name) > 1:
                    raise ValueError(f"{key} names {name!r} twice: remove one")
        models = {model for model, _ in map(model_and_balancer, self.retrain.models)}
        if "youtube" in models and self.data.position is None:
            raise ValueError("retrain.models names 'youtube', whose tower learns what the position does: set "
                             "data.position, or take youtube out")
        if "youtube" in models and self.data.position in [f.reads for f in self.data.fields]:
            raise ValueError(f"retrain.models names 'youtube', and data.fields names the position, "
                             f"{self.data.position!r}: as a field it is served, and the tower has nothing to explain; "
                             "take the field out")
        if "esm2" in models and self.retrain.esm2.action not in names:
            raise ValueError(f"retrain.models names 'esm2', and retrain.esm2.action = {self.retrain.esm2.action!r} is "
                             f"not the binary objective between click and purchase: use one of {', '.join(names)}")
        if self.retrain.history != "mean" and not any(f.kind == "sequence" and f.of for f in self.data.fields):
            raise ValueError(f"retrain.history = {self.retrain.history!r} needs a sequence `of` a field of the row, "
                             "from which to look at it: give a history of data.fields its item field as `of:`, or set "
                             "retrain.history to mean")
        if "uniform" not in self.search_embedding.methods:
            raise ValueError("search_embedding.methods must contain 'uniform', the control of every search")
        if "all_pairs" not in self.search_interaction.methods:
            raise ValueError("search_interaction.methods must contain 'all_pairs', the control of every search")
        searches = self.search_embedding
        widths = {"autodim.candidates": searches.autodim.candidates, "narrow.widths": searches.narrow.widths,
                  "frequency_rule.candidates": searches.frequency_rule.candidates,
                  "autoemb.candidates": searches.autoemb.candidates}
        for key, values in widths.items():
            if key.split(".")[0] in searches.methods and max(values) > self.training.embedding_dim:
                raise ValueError(f"search_embedding.{key} must not exceed training.embedding_dim")
        return self

    def _check_fusion(self) -> None:
        fusion = self.tune_fusion
        single = [f.name for f in self.data.fields if f.kind != "sequence"]
        for key, fields in fusion.fields.items():
            for name in fields:
                if name not in single:
                    raise ValueError(f"tune_fusion.{key} = {name!r} is no categorical or numeric field of data.fields")
        numeric = [f.name for f in self.data.fields if f.kind == "numeric"]
        for key, column in (("product_with_length.length", fusion.product_with_length.length),
                            ("expected_value.price", fusion.expected_value.price)):
            if column in [o.name for o in self.data.objectives]:
                raise ValueError(f"tune_fusion.{key} = {column!r} is an objective, which nobody knows when rows are "
                                 "served: name a numeric field of data.fields")
            if column is not None and column not in numeric:
                raise ValueError(f"tune_fusion.{key} = {column!r} is no numeric field of data.fields: name it there, "
                                 "since a served model is given its fields and nothing else")
        for name in fusion.expected_value.values:
            if name not in [o.name for o in self.data.objectives if o.kind == "binary"]:
                raise ValueError(f"tune_fusion.expected_value.values names {name!r}, no binary objective of "
                                 "data.objectives: only an event has a probability")
        for objective, model in fusion.scorers.items():
            if objective not in [o.name for o in self.data.objectives]:
                raise ValueError(f"tune_fusion.scorers names {objective!r}, no objective of data.objectives")
            if model not in self.retrain.models:
                raise ValueError(f"tune_fusion.scorers.{objective} = {model!r} is not among retrain.models")


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is unreadable, or a key or value is not accepted; names the key and the remedy.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(path, "yaml", first, "not readable as YAML", "mend the file") from error
    return parse(raw, path)


def parse(raw: Any, where: Path | str) -> Params:
    """Check an already read params.yaml.

    Raises:
        InputError: a key or value is not accepted.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"]) or "params"
        if first["type"] == "extra_forbidden":
            raise InputError(where, key, first["input"], "unknown key",
                             "remove it or mend its spelling (docs/params.md lists every key)") from None
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(where, key, first["input"], problem, "see docs/params.md for this key") from None


def check_sections(raw: Mapping[str, Any], where: Path | str) -> None:
    """Refuse what DVC would refuse when a stage's turn comes: it compares sections, and does not know their defaults.

    Raises:
        InputError: a section of the file is absent.
    """
    for name, field in Params.model_fields.items():
        if (key := field.alias or name) not in raw:
            raise InputError(where, key, None, "a section that is not there, which DVC compares between runs",
                             f"for its defaults write `{key}: {{}}`")
