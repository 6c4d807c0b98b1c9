"""A search in flight: the steps of its weights, from wherever a checkpoint left them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Protocol

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.loader import Loader
from ctrmodels.search.base import Found, SearchMethod, configuration
from ctrmodels.training.checkpoint import Checkpoint, flatten, unflatten
from ctrmodels.training.trainer import Step, Trainer


class Stateful(Protocol):
    """Part of a search that changes from step to step."""

    def state(self) -> dict[str, Tensor]:
        """All that it is made of, as named tensors."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Be as :meth:`state` said."""
        ...


class Progress:
    """Where a search is, and its checkpoint: a search killed at any moment goes on to the same result.

    A method builds everything, names its ``parts``, and then goes on from here::

        progress = Progress(self, seed, trainer, checkpoint, {"arch": arch})
        for epoch in progress.epochs(self.epochs):
            for step in progress.steps(train):
                ...
            progress.found.trace.append({"epoch": epoch})

    What the body does after a step belongs to that step: the state is written once it is done.

    Args:
        method: the search.
        seed: of it.
        trainer: of the network, with all optimisers that step with it.
        checkpoint: where the state is kept; what it holds of an earlier attempt is continued.
        parts: everything else that changes: optimisers that step by themselves, loaders, controllers.

    Attributes:
        found: what was found so far.
        epoch, step: passes, and steps of this pass, that are done.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another search.
    """

    def __init__(self, method: SearchMethod, seed: int, trainer: Trainer, checkpoint: Checkpoint | None = None,
                 parts: Mapping[str, Stateful] | None = None) -> None:
        self.trainer, self.checkpoint, self.parts = trainer, checkpoint, parts or {}
        self.found, self.epoch, self.step = Found({}), 0, 0
        self.whose = {"method": method.name, "seed": seed, **configuration(method), "training": asdict(trainer.config),
                      "network": _name(trainer.network)}
        if checkpoint is not None:
            self._restore(checkpoint)

    def epochs(self, n: int) -> Iterator[int]:
        """The passes up to the ``n``-th that are not done."""
        while self.epoch < n:
            yield self.epoch
            self.epoch, self.step = self.epoch + 1, 0

    def steps(self, loader: Loader) -> Iterator[Step]:
        """Train on the batches of this pass that are not done; yields after every step.

        Raises:
            FloatingPointError: after the last one, if a loss was not finite: what such weights show is arbitrary.
        """
        total = torch.zeros((), device=self.trainer.device)  # read once, so that no step waits for the device
        for step in self.trainer.epoch(loader, self.epoch, self.step):
            total += step.loss
            yield step
            self.done()
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"the loss became {total.item()} in pass {self.epoch} of {self.whose['method']}: "
                                     "lower training.learning_rate")

    def done(self) -> None:
        """A step is over, with all that came of it."""
        self.step += 1
        self.found.steps += 1
        if self.checkpoint is not None and self.trainer.taken % self.checkpoint.every == 0:
            self._save(self.checkpoint)

    def keep(self) -> None:
        """All passes are done: written down, for a search that goes on from here with another network."""
        if self.checkpoint is not None:
            self._save(self.checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        packed = {name: spec.pack() for name, spec in self.found.specs.items()}
        specs = {f"{name}/{key}": torch.from_numpy(array)
                 for name, (_, arrays) in packed.items() for key, array in arrays.items()}
        parts = {name: part.state() for name, part in self.parts.items()}
        checkpoint.save(flatten({"trainer": self.trainer.state(), "specs": specs, **parts}), {
            "whose": self.whose, "epoch": self.epoch, "step": self.step, "trace": self.found.trace,
            "steps": self.found.steps, "specs": {name: document for name, (document, _) in packed.items()}})

    def _restore(self, checkpoint: Checkpoint) -> None:
        stored = checkpoint.load_of(self.whose)
        if stored is None:
            return
        parts, document = unflatten(stored[0]), stored[1]
        self.trainer.load(parts["trainer"])
        for name, part in self.parts.items():
            part.load(parts[name])
        specs = unflatten(parts["specs"])
        self.found = Found({name: ArchSpec.unpack(raw, {k: t.numpy() for k, t in specs[name].items()})
                            for name, raw in document["specs"].items()}, document["trace"], document["steps"])
        self.epoch, self.step = document["epoch"], document["step"]


def _name(network: nn.Module) -> str:
    """The kind of a network, what it predicts, and a digest of its tensors' names and shapes."""
    shapes = sorted((name, tuple(t.shape)) for name, t in network.state_dict().items())
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
    return f"{type(network).__name__} of {getattr(network, 'objective', 'several objectives')}, {digest}"
