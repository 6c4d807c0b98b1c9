"""The one training loop: searches, controls, retraining and benchmarks all use it."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ctrmodels import ranks
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.lists import ListLoader
from ctrmodels.data.loader import Loader
from ctrmodels.nn.towers import MLP
from ctrmodels.training.checkpoint import Checkpoint, flatten, unflatten
from ctrmodels.training.optimisers import Optimisers, TableOptimiser, clip_norm

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["constant", "cosine"]


@runtime_checkable
class Model(Protocol):
    """What the loop asks of a model, which is also a ``torch.nn.Module``."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar to minimise."""
        ...

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Scores by name, each [B], such as ``like@all``: a probability or an expected value."""
        ...


class ManyLosses(Model, Protocol):
    """A model whose loss is a sum that a balancer may take apart."""

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The losses by name, and what is minimised beside them however they are balanced; all of them scalars."""
        ...


class Balancer(Protocol):
    """Makes the gradients of a step out of several losses, in place of ``loss(batch).backward()``.

    It is a ``torch.nn.Module`` whose ``state_dict`` is part of the training's state; those that there are lie in
    ``ctrmodels.multitask.balancers``.

    Attributes:
        settings: what it is, for checkpoints: plain values by name.
    """

    settings: dict[str, Any]

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor, step: int) -> Tensor:
        """Put the gradients of step ``step``, from 0, into ``.grad``; returns the scalar that is reported as loss."""
        ...

    def optimiser(self) -> torch.optim.Optimizer | None:
        """That of its own parameters, if it has any."""
        ...

    def end_epoch(self) -> dict[str, float]:
        """What to record of the epoch, by name; the next one starts."""
        ...


Metric = Callable[[dict[str, np.ndarray], Rows], float]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: at most this many passes.
        patience: passes without a better validation metric before it stops.
        batch_size: rows per step, over all ranks.
        learning_rate: of Adam on the layers.
        table_optimiser: of the embedding tables: ``lazy_adam``, ``rowwise_adagrad``, or ``adam`` on whole tables.
        table_learning_rate: of the tables; ``None`` = ``learning_rate``.
        weight_decay: decoupled, on the layers.
        clip_norm: largest norm of a step's gradient; ``None`` = no limit.
        schedule: of the learning rates after the warm-up: ``constant``, or ``cosine`` down to zero.
        warm_up: share of the planned steps in which the learning rates rise linearly.
        precision: of matrix products: ``bf16``, ``fp32``, or ``auto`` = bf16 where the processor computes with it.
        compile: whether MLPs are compiled; worth its minute of compilation on long runs only.
        device: ``auto``, ``cpu`` or ``cuda``.
        buffer_mb: MiB of rows held in memory; a larger log is streamed.
        seed: of the order of rows; parameters are initialised by whoever builds the model.
    """

    epochs: int = 10
    patience: int = 2
    batch_size: int = 1024
    learning_rate: float = 1e-3
    table_optimiser: TableOptimiser = "lazy_adam"
    table_learning_rate: float | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: Schedule = "constant"
    warm_up: float = 0.0
    precision: Precision = "fp32"
    compile: bool = False
    device: str = "auto"
    buffer_mb: int = 2048
    seed: int = 0


@dataclass
class FitResult:
    """What a training did.

    Attributes:
        history: one entry per epoch: ``loss`` (mean over the steps), ``metric`` (on the validation rows), and what a
            balancer records.
        best_epoch: index of the epoch whose weights were kept.
        best_metric: its metric.
        steps: optimiser steps taken.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_metric: float = -math.inf
    steps: int = 0


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and have torch refuse nondeterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Writing a constant into every fresh tensor would only help to find reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def resolve_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU; a GPU is this rank's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{ranks.local()}"
    return torch.device(name)


def computes_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class Step:
    """One update.

    Attributes:
        loss: scalar, not yet read from the device.
        batch: that it was on, this rank's part.
        taken: updates so far, with this one.
    """

    loss: Tensor
    batch: Batch
    taken: int

    @property
    def rows(self) -> int:
        """Of the batch, on this rank."""
        return len(self.batch)


class Trainer:
    """Updates of one network: device, precision, optimisers, ranks.

    Args:
        model: a module with ``loss`` and ``predict``.
        config: how to train.
        architecture: parameters of the model that someone else steps, such as a search's gates.
        planned: number of steps that learning-rate schedules count on.
        balancer: of a model with ``terms``; by default their sum is minimised.
    """

    def __init__(self, model: Model, config: TrainConfig, architecture: Sequence[Tensor] = (),
                 planned: int = 0, balancer: Balancer | None = None) -> None:
        assert isinstance(model, nn.Module)
        self.model, self.config, self.planned, self.balancer = model, config, planned, balancer
        self.device = resolve_device(config.device)
        ranks.start(self.device)
        self.network: nn.Module = model.to(self.device)
        ranks.share_state(self.network)
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_bf16(self.device))
        if config.compile:
            if balancer is not None:  # goes back through the same graph several times, so that no buffer is given away
                torch._functorch.config.donated_buffer = False
            for module in self.network.modules():
                if isinstance(module, MLP):
                    module.compile()
        self.optimisers = Optimisers.of(model, config.learning_rate, config.table_optimiser,
                                        config.table_learning_rate, config.weight_decay, exclude=architecture)
        if balancer is not None:
            cast(nn.Module, balancer).to(self.device)
            own = balancer.optimiser()
            if own is not None:
                self.optimisers.add_architecture(own)
        self.taken = 0

    def loader(self, rows: Rows, seed: int | None = None, batch_size: int | None = None) -> Loader:
        """Shuffled batches of ``rows``, this rank's part of them; of the configured size if none is given.

        A model that says so by ``whole_lists`` gets batches that hold their lists whole.
        """
        loader = ListLoader if getattr(self.model, "whole_lists", False) else Loader
        return loader(rows, batch_size or self.config.batch_size, self.config.seed if seed is None else seed,
                      self.config.buffer_mb, ranks.rank(), ranks.count(), device=self.device)

    def loss(self, batch: Batch) -> Tensor:
        """The model's loss in the configured precision."""
        with self.autocast():
            return self.model.loss(batch.to(self.device))

    def autocast(self) -> AbstractContextManager[Any]:
        """The configured precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def step(self, batch: Batch) -> Tensor:
        """Update the network on one batch; returns its loss, not yet read from the device."""
        self.optimisers.zero_grad()
        loss = self._backward(batch)
        trained = self.optimisers.parameters()
        ranks.average_gradients(trained)
        if self.config.clip_norm is not None:
            clip_norm(self.optimisers.weights(), self.config.clip_norm)
        if self.config.warm_up or self.config.schedule != "constant":
            self.optimisers.scale(self._rate())
        self.optimisers.step()
        self.taken += 1
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        """The gradients of one step; returns its loss."""
        if self.balancer is None:
            loss = self.loss(batch)
            loss.backward()
            return loss.detach()
        with self.autocast():
            losses, rest = cast(ManyLosses, self.model).terms(batch.to(self.device))
        return self.balancer.backward(losses, rest, self.taken)

    def end_epoch(self) -> dict[str, float]:
        """What the balancer records of an epoch that is over; nothing without one."""
        return {} if self.balancer is None else self.balancer.end_epoch()

    def epoch(self, loader: Loader, epoch: int, skip: int = 0) -> Iterator[Step]:
        """Train on the batches of one epoch after the first ``skip``; yields after every step."""
        self.network.train()
        for batch in loader.epoch(epoch, skip):
            yield Step(self.step(batch), batch, self.taken)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, the state of random numbers with it; :meth:`load` restores it."""
        found = flatten({"model": self.network.state_dict(), "optimiser": self.optimisers.state()})
        found |= {"taken": torch.tensor(self.taken), "random": torch.get_rng_state()}
        if self.balancer is not None:
            found |= flatten({"balancer": cast(nn.Module, self.balancer).state_dict()})
        if self.device.type == "cuda":
            found["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        parts = unflatten(state)
        self.network.load_state_dict(parts["model"])
        self.optimisers.load(parts["optimiser"])
        if self.balancer is not None:
            cast(nn.Module, self.balancer).load_state_dict(parts["balancer"])
        self.taken = int(state["taken"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _rate(self) -> float:
        """What the schedule multiplies the learning rates with at the coming step."""
        if not self.planned:
            raise ValueError("a schedule or warm-up of learning rates needs to know the number of steps: set planned")
        done = self.taken / self.planned
        if done < self.config.warm_up:
            return (self.taken + 1) / (self.config.warm_up * self.planned + 1)
        if self.config.schedule == "constant":
            return 1.0
        left = (done - self.config.warm_up) / (1 - self.config.warm_up)
        return 0.5 * (1 + math.cos(math.pi * min(left, 1.0)))


class _Progress:
    """A training in flight: everything that a checkpoint holds."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.result = trainer, FitResult()
        self.epoch, self.step = 0, 0
        self.total = torch.zeros((), device=trainer.device)
        self.best: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, Tensor]:
        return flatten({"trainer": self.trainer.state(), "best": self.best, "loss": {"total": self.total}})

    def document(self) -> dict[str, Any]:
        return {"whose": self._whose(), "epoch": self.epoch, "step": self.step, "result": asdict(self.result)}

    def _whose(self) -> dict[str, Any]:
        balancer = self.trainer.balancer
        return {**asdict(self.trainer.config), "balancer": None if balancer is None else balancer.settings}

    def restore(self, checkpoint: Checkpoint) -> None:
        found = checkpoint.load_of(self._whose())
        if found is None:
            return
        parts, document = unflatten(found[0]), found[1]
        self.trainer.load(parts["trainer"])
        self.best = {k: t.to(self.trainer.device) for k, t in parts["best"].items()}
        self.total = parts["loss"]["total"].to(self.trainer.device)
        self.epoch, self.step = document["epoch"], document["step"]
        self.result = FitResult(**document["result"])


def fit(model: Model, train: Rows, valid: Rows, config: TrainConfig, metric: Metric,
        checkpoint: Checkpoint | None = None, balancer: Balancer | None = None) -> FitResult:
    """Train until the validation metric has not risen for ``patience`` epochs; keep the best weights.

    The metric is computed once per epoch over all validation rows. Losses are summed on the device and read
    once per epoch, so that no step waits for another.

    Args:
        model: a module with ``loss`` and ``predict``; left in evaluation mode with its best weights.
        train: rows to learn from.
        valid: rows to stop by.
        config: how to train.
        metric: of the predictions on ``valid``; higher is better.
        checkpoint: where the state is kept while training; what it holds of an earlier attempt is continued, and
            the result is the same to the bit as without the interruption.
        balancer: of a model with ``terms``; by default their sum is minimised.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: the checkpoint is damaged or belongs to another training.
    """
    trainer = Trainer(model, config, balancer=balancer)
    loader = trainer.loader(train)
    trainer.planned = config.epochs * loader.steps(0)
    run = _Progress(trainer)
    if ranks.count() > 1:
        torch.manual_seed(config.seed * ranks.count() + ranks.rank())  # each rank drops out its own values
    if checkpoint is not None:
        run.restore(checkpoint)
    while run.epoch < config.epochs and run.epoch - run.result.best_epoch <= config.patience:
        _train_epoch(run, loader, checkpoint)
        _judge_epoch(run, valid, metric)
    if run.best:
        trainer.network.load_state_dict(run.best)
    trainer.network.eval()
    if checkpoint is not None:
        checkpoint.remove()
    return run.result


def _train_epoch(run: _Progress, loader: Loader, checkpoint: Checkpoint | None) -> None:
    trainer, began = run.trainer, time.perf_counter()
    rows = 0
    with tqdm(total=len(loader.rows), desc=f"epoch {run.epoch}", unit=" samples", unit_scale=True, leave=False,
              disable=None, initial=run.step * loader.batch_size) as bar:
        for step in trainer.epoch(loader, run.epoch, run.step):
            run.total += step.loss
            run.step += 1
            rows += step.rows
            bar.update(step.rows * ranks.count())
            if checkpoint is not None and step.taken % checkpoint.every == 0:
                checkpoint.save(run.tensors(), run.document())
    log.info("epoch %d: %.0f samples/s", run.epoch, rows / (time.perf_counter() - began))


def _judge_epoch(run: _Progress, valid: Rows, metric: Metric) -> None:
    """Measure on ``valid``, keep the weights if they are the best so far, and go to the next epoch."""
    result, network = run.result, run.trainer.network
    loss = (ranks.mean(run.total) / max(run.step, 1)).item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} in epoch {run.epoch}: lower training.learning_rate")
    value = float(metric(predict(run.trainer.model, valid), valid))
    result.history.append({"loss": loss, "metric": value, **run.trainer.end_epoch()})
    result.steps += run.step
    log.info("epoch %d: loss %.5f, valid %.5f", run.epoch, loss, value)
    if value > result.best_metric:
        result.best_epoch, result.best_metric = run.epoch, value
        run.best = {k: v.detach().clone() for k, v in network.state_dict().items()}
    run.epoch, run.step = run.epoch + 1, 0
    run.total.zero_()


@torch.no_grad()
def predict(model: Model, rows: Rows, batch_size: int = 8192) -> dict[str, np.ndarray]:
    """Scores of all ``rows``, in order and in full precision: name → float32 [N]."""
    assert isinstance(model, nn.Module)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}
    for batch in rows.batches(batch_size):
        for name, score in model.predict(batch.to(device)).items():
            parts.setdefault(name, []).append(score.float().cpu().numpy())
    model.train(was_training)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}
