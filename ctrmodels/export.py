"""Trained models as files for serving, as ONNX or as a package of ``torch.export``.

Both forms hold the same function of plain tensors: ``ids`` int32 [B, F], ``numeric`` float32 [B, N] and, for each
sequence field, int32 [B, L], for any B, to one float32 [B] per name of ``predict``. Pruned values are left out.
With a fusion the ONNX form has the fused score as well.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ctrmodels.data.dataset import PADDING, Batch
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.fusion.graph import FusedGraph
from ctrmodels.fusion.spec import FusionSpec
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.one_score import OneScoreModel
from ctrmodels.multitask.split import ItemHalf, UserHalf
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.packed import PackedTable
from ctrmodels.nn.table import Table
from ctrmodels.training.checkpoint import digest_of
from ctrmodels.zoo.base import CTRModel

Model = CTRModel | MultiObjectiveModel | OneScoreModel
M = TypeVar("M", bound=Model)
TOLERANCE = 1e-5  # absolute, and relative for scores beyond 1
FUSED_TOLERANCE = 1e-6  # of the fused score given the exported scores, absolute and relative
CHECKED_ROWS = 64
FUSED = "fused"
"""Name of the fused score among a model's scores."""


def fingerprint(model: Model) -> str:
    """sha256 over a model's parameters and statistics: what a fusion names the model by that it was fitted for."""
    return digest_of({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})


def export_onnx(model: Model, schema: Schema, folder: Path, fusion: FusionSpec | None = None) -> None:
    """Write ``model.onnx``, ``signature.json``, ``schema.json`` and the loader ``serving.py`` into ``folder``.

    The folder appears whole or not at all, and only if the file's scores equal the model's.

    Args:
        model: trained.
        schema: of its inputs.
        folder: a new or empty one.
        fusion: how its scores are fused; the file then has one more score, ``fused``. A function of ranks takes
            the rows of one call for one list. A length or price is read from the input ``numeric``.

    Raises:
        InputError: the folder is not empty, a package is not installed, the scores differ, or the fusion was
            fitted for another model or fuses what is neither a score of this one nor an input.
    """
    serving = _serving()
    rows = _random_rows(schema)
    expected = _scores(model, rows)
    if fusion is not None:
        _check_fusion(fusion, model, schema, list(expected))
    outputs = list(expected) if fusion is None else [*expected, FUSED]
    with _appearing(folder) as partial, _quiet():
        fused_score = None if fusion is None else _Fused(fusion, schema)
        _save_onnx(partial, schema, _program(model, rows, fused_score), list(rows), dict.fromkeys(outputs, ()))
        found = serving.Scorer(partial).score(rows["ids"], rows["numeric"], _sequences(rows))
        _compare(folder, found, expected, TOLERANCE)
        if fusion is not None:  # from the file's own scores, whose small errors a logarithm may magnify
            scores = {name: found[name] for name in expected}
            scores |= _logged(fusion, schema, rows["numeric"].astype(np.float64))
            fused = fusion.score(scores, np.zeros(CHECKED_ROWS, int), fingerprint(model))
            _compare(folder, found, {FUSED: fused}, FUSED_TOLERANCE)


def export_split(model: MultiObjectiveModel, schema: Schema, folder: Path) -> None:
    """Write the two halves of a model whose user is computed once per request, each as :func:`export_onnx` does.

    ``Scorer(folder / "user").score(ids, numeric, sequences)`` of the fields without ``side: item``, a row per request,
    gives the state, ``state.user`` in it being the representation; ``Scorer(folder / "items").score(ids, numeric,
    sequences, state)`` of the item's fields, a row per item, gives the scores of the request whose state it is.

    Raises:
        InputError: the model has no such halves, the folder is not empty, a package is not installed, or the scores
            differ from those of the whole model.
    """
    serving, served = _serving(), _packed(model)
    user, items = UserHalf(served, schema), ItemHalf(served, schema)
    of_user, of_items, batch = _random_rows(user.schema), _random_rows(items.schema), {0: torch.export.Dim("batch")}
    one = {name: values[-1:] for name, values in of_user.items()}
    with torch.no_grad():  # packed tables are for graphs
        state = UserHalf(_served(model), schema)(*_arguments(one))
    expected, static = _scores(model, _side_by_side(schema, one, of_items)), dict.fromkeys(state)
    with _appearing(folder) as partial, _quiet():
        _save_onnx(partial / "user", user.schema, _exported(user.eval(), _arguments(of_user), (
            batch, batch, dict.fromkeys(_sequences(of_user), batch))), list(of_user),
            {name: tuple(values.shape[1:]) for name, values in state.items()})
        _save_onnx(partial / "items", items.schema, _exported(items.eval(), (state, *_arguments(of_items)), (
            static, batch, batch, dict.fromkeys(_sequences(of_items), batch))), [*state, *of_items],
            dict.fromkeys(expected, ()), {name: tuple(values.shape) for name, values in state.items()})
        given = serving.Scorer(partial / "user").score(one["ids"], one["numeric"], _sequences(one))
        scorer = serving.Scorer(partial / "items")
        found = scorer.score(of_items["ids"], of_items["numeric"], _sequences(of_items), given)
        _compare(folder, found, expected, TOLERANCE)


def export_package(model: Model, schema: Schema, folder: Path) -> None:
    """Write ``model.pt2``, ``signature.json`` and ``schema.json`` into ``folder``, as :func:`export_onnx` does.

    ``torch.export.load(path).module()(ids, numeric, sequences)`` gives the scores by name.

    Raises:
        InputError: the folder is not empty, or the scores differ.
    """
    rows = _random_rows(schema)
    expected = _scores(model, rows)
    with _appearing(folder) as partial, _quiet():
        torch.export.save(_program(model, rows), partial / "model.pt2")
        _describe(partial, schema, dict.fromkeys(expected, ()))
        scores = torch.export.load(partial / "model.pt2").module()(*_arguments(rows))
        _compare(folder, {name: score.numpy() for name, score in scores.items()}, expected, TOLERANCE)


class _Fused(nn.Module):
    """A fusion of a model's scores and, where it has a length or price, of its numeric inputs."""

    def __init__(self, fusion: FusionSpec, schema: Schema) -> None:
        super().__init__()
        self._fusion, self._schema = fusion, schema
        self.graph = FusedGraph(fusion)

    def forward(self, scores: dict[str, Tensor], numeric: Tensor) -> Tensor:
        """Fused score [B]."""
        fused: Tensor = self.graph(scores | _logged(self._fusion, self._schema, numeric.double()))
        return fused


class _Scores(nn.Module):
    """A model as a function of plain tensors, with its fused score if there is a fusion."""

    def __init__(self, model: Model, fused: _Fused | None = None) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, ids: Tensor, numeric: Tensor, sequences: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores by name, [B] each. Serving knows neither labels nor positions."""
        n = ids.shape[0]
        scores = self.model.predict(Batch(ids, numeric, sequences, numeric.new_zeros(n, 0), ids.new_zeros(n)))
        return scores if self.fused is None else scores | {FUSED: self.fused(scores, numeric)}


def _check_fusion(fusion: FusionSpec, model: Model, schema: Schema, names: list[str]) -> None:
    """Refuse a fusion of anything but this model's scores and inputs."""
    fusion.check_models(fingerprint(model))
    for score in fusion.predicted:
        if score.name not in names:
            raise InputError("fusion", "score", score.name, f"is none of the model's scores {', '.join(names)}",
                             "fuse by FusionSpec.score what comes from elsewhere")
    numeric = [f.name for f in schema.numeric_fields]
    for column in fusion.columns:
        if column.name not in numeric:
            raise InputError("fusion", column.part, column.name, "is no numeric input of the model, so that its server "
                             f"does not know it; the inputs are {', '.join(numeric) or 'none'}",
                             "name it in data.fields and train again, or fuse by FusionSpec.score")
        if column.name not in schema.scales:
            raise InputError("fusion", column.part, column.name, "its scale is not in schema.json, so that its value "
                             "cannot be told from the model's input", "run the stages from `encode` again")


def _logged(fusion: FusionSpec, schema: Schema, numeric: Any) -> dict[str, Any]:
    """The log's columns of a fusion in their own units, [B] each, from ``numeric`` [B, N] in float64."""
    return {c.name: schema.scales[c.name].raw(numeric[:, schema.numeric_index(c.name)]) for c in fusion.columns}


def _serving() -> ModuleType:
    """The loader, which needs packages that come with an extra."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError("export_onnx", "package", package, "not installed", "pip install 'ctrmodels[export]'")
    return importlib.import_module("ctrmodels.serving")


def _save_onnx(folder: Path, schema: Schema, program: ExportedProgram, inputs: list[str],
               outputs: Mapping[str, tuple[int, ...]],
               state: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> None:
    """Write ``model.onnx`` and what goes with it; ``outputs`` with their shapes behind the batch."""
    folder.mkdir(exist_ok=True)
    onnx = torch.onnx.export(program, input_names=inputs, output_names=list(outputs), verbose=False)
    assert onnx is not None
    onnx.save(folder / "model.onnx")
    _describe(folder, schema, outputs, state)
    shutil.copyfile(_serving().__file__ or "", folder / "serving.py")


def _program(model: Model, rows: Mapping[str, np.ndarray], fused: _Fused | None = None) -> ExportedProgram:
    """The graph of a model with folded embeddings and packed tables, for any number of rows."""
    batch = {0: torch.export.Dim("batch")}
    return _exported(_Scores(_packed(model), fused), _arguments(rows),
                     (batch, batch, dict.fromkeys(_sequences(rows), batch)))


def _exported(module: nn.Module, arguments: tuple[Any, ...], dynamic: tuple[Any, ...]) -> ExportedProgram:
    """The graph of a module of plain tensors."""
    with torch.no_grad():
        program = torch.export.export(module, arguments, strict=False, dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine: equal models give equal bytes anywhere
    program.example_inputs = None  # a package would hold them as a pickle
    return program


def _packed(model: M) -> M:
    """A copy in evaluation mode with folded embeddings and packed tables, and nothing that only training needs."""
    served = _served(model)
    for encoder in [m for m in served.modules() if isinstance(m, FeatureEncoder)]:
        encoder.embedding = encoder.embedding.folded().requires_grad_(False)
        for name, table in encoder.tables.items():
            encoder.tables[name] = cast(FieldEmbedding, table).folded().requires_grad_(False)
    for parent in list(served.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Table) and child.mask is not None:
                parent.register_module(name, PackedTable.of(child))
    return served


def _served(model: M) -> M:
    """A copy in evaluation mode on the CPU that shares the tensors which are there already."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().cpu(), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.detach().cpu() for b in model.buffers()}
    served = copy.deepcopy(model, memo)
    if isinstance(served, MultiObjectiveModel):
        served.drop_training_parts()
    served.eval()
    return served


def _scores(model: Model, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model itself says of ``rows``."""
    with torch.no_grad():
        return {name: score.numpy() for name, score in _Scores(_served(model))(*_arguments(rows)).items()}


def _random_rows(schema: Schema) -> dict[str, np.ndarray]:
    """Valid inputs by name; first and last id, empty and full sequences among them."""
    rng, n = np.random.default_rng(0), CHECKED_ROWS
    sizes = np.array([f.vocab for f in schema.id_fields], np.int64)
    ids = rng.integers(sizes, size=(n, len(sizes)))
    ids[0], ids[-1] = 0, sizes - 1
    rows = {"ids": ids.astype(np.int32),
            "numeric": rng.standard_normal((n, len(schema.numeric_fields)), np.float32)}
    for f in schema.sequence_fields:
        lengths = rng.integers(f.max_length + 1, size=(n, 1))
        lengths[0], lengths[-1] = 0, f.max_length
        steps = rng.integers(f.vocab, size=(n, f.max_length))
        rows[f"sequence.{f.name}"] = np.where(np.arange(f.max_length) < lengths, steps, PADDING).astype(np.int32)
    return rows


def _sequences(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs that are sequences, by the field's name."""
    return {name.removeprefix("sequence."): steps for name, steps in rows.items() if name.startswith("sequence.")}


def _arguments(rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs as :class:`_Scores` takes them."""
    sequences = {name: torch.from_numpy(steps) for name, steps in _sequences(rows).items()}
    return torch.from_numpy(rows["ids"]), torch.from_numpy(rows["numeric"]), sequences


def _side_by_side(schema: Schema, one: Mapping[str, np.ndarray], items: Mapping[str, np.ndarray],
                  ) -> dict[str, np.ndarray]:
    """Whole rows: those of ``items``, with ``one`` row's values in the fields that are not the item's."""
    n, found = len(items["ids"]), {}
    for name, fields in (("ids", schema.id_fields), ("numeric", schema.numeric_fields)):
        mine = np.array([f.side == "item" for f in fields], bool)
        found[name] = np.empty((n, len(fields)), items[name].dtype)
        found[name][:, mine], found[name][:, ~mine] = items[name], one[name]
    for name in (f"sequence.{f.name}" for f in schema.sequence_fields):
        found[name] = items[name] if name in items else np.repeat(one[name], n, 0)
    return found


def _describe(folder: Path, schema: Schema, outputs: Mapping[str, tuple[int, ...]],
              state: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> None:
    """Write ``schema.json``, and ``signature.json`` with the digest of every ``model.*``."""
    def described(name: str, dtype: str, fields: list[str], columns: int, **ids: Any) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": ["batch", columns], "fields": fields, **ids}

    ids, numeric = schema.id_fields, [f.name for f in schema.numeric_fields]
    inputs = [described("ids", "int32", [f.name for f in ids], len(ids), vocabulary=[f.vocab for f in ids], lowest=0),
              described("numeric", "float32", numeric, len(numeric))]
    inputs += [described(f"sequence.{f.name}", "int32", [f.name], f.max_length, vocabulary=[f.vocab], lowest=PADDING)
               for f in schema.sequence_fields]
    inputs += [{"name": name, "dtype": "float32", "shape": list(shape), "fields": [name]}
               for name, shape in state.items()]
    digests = {}
    for path in sorted(folder.glob("model.*")):  # weights beyond 2 GB lie beside model.onnx
        with path.open("rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    document = {"inputs": inputs, "sha256": digests,
                "outputs": [{"name": name, "dtype": "float32", "shape": ["batch", *shape]}
                            for name, shape in outputs.items()]}
    (folder / "signature.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    schema.save(folder / "schema.json")


def _compare(folder: Path, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray],
             tolerance: float) -> None:
    """Refuse to hand out other scores than the model's own."""
    for name, score in expected.items():
        difference = float(np.abs(found[name] - score).max())
        if not np.allclose(found[name], score, rtol=tolerance, atol=tolerance):
            raise InputError(folder, name, difference, "so far are the exported scores from the model's own",
                             "look for weights that are not finite; without them this is a bug, please report it")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that no ranking model needs and on PyTorch's own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the name ``folder`` once all is written, and vanishes if that fails."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "folder", folder.name, "is there already and not empty",
                         "delete it, or export to another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / folder.name
        partial.mkdir()
        yield partial
        partial.rename(folder)
