"""NIS: a policy picks which blocks of every table exist, rewarded by quality within a budget."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, combinations
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec, PerBucket
from ctrmodels.data.loader import Endless
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import INIT_SD, projection
from ctrmodels.nn.rows import RowEmbedding, Touched
from ctrmodels.nn.table import Table
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.embedding.rules import by_space
from ctrmodels.search.policy import Policy
from ctrmodels.search.progress import Progress
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer, seed_everything

Mode = Literal["single", "multi"]
PASS = 1 / 3  # of a training step: forward alone
FINALISTS = 32  # how many of the last actions inside the budget are compared where the most probable one is not


@dataclass(frozen=True)
class Blocks:
    """Every id space's table cut into row blocks by popularity and column slices.

    Notation: F id spaces, S row blocks at most, T slices. *Depths* int64 [F, T] say how many row blocks, from the head
    on, keep each slice of each space; any subset of blocks that a policy may pick is of this form.

    Attributes:
        edges: for every id space the ids at which its row blocks begin, and its number of ids.
        widths: of every slice; they add up to the common width D.
        mode: ``single``: every id that a space keeps has the same slices, the first ones. ``multi``: every slice has a
            depth of its own.
    """

    edges: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    mode: Mode

    @cached_property
    def table(self) -> np.ndarray:
        """int64 [F, S + 1] of ``edges``; the blocks that a space does not have are empty."""
        longest = max(len(e) for e in self.edges)
        return np.array([(*e, *[e[-1]] * (longest - len(e))) for e in self.edges])

    @cached_property
    def choices(self) -> Tensor:
        """Depths that each head's choices stand for: int64 [H, C, T'], -1 where a head has no such choice.

        ``single`` has one head per space, whose first choice drops it (T' = T); ``multi`` one per space and slice
        (T' = 1).
        """
        options: list[list[tuple[int, ...]]] = []
        for edges in self.edges:
            depths = range(len(edges))
            if self.mode == "multi":
                options += [[(depth,) for depth in depths]] * len(self.widths)
            else:
                options.append([(0,) * len(self.widths)] + [
                    tuple(depth if t < kept else 0 for t in range(len(self.widths)))
                    for depth in depths[1:] for kept in range(1, len(self.widths) + 1)])
        longest = max(len(o) for o in options)
        return torch.tensor([o + [(-1,) * len(o[0])] * (longest - len(o)) for o in options])

    @property
    def allowed(self) -> Tensor:
        """bool [H, C], for :class:`~ctrmodels.search.policy.Policy`."""
        return self.choices[:, :, 0] >= 0

    def depths(self, action: Tensor) -> np.ndarray:
        """int64 [F, T] of a policy's action [H]."""
        return self.choices[torch.arange(len(action)), action].view(len(self.edges), len(self.widths)).numpy()

    def limits(self, depths: np.ndarray) -> np.ndarray:
        """int64 [F, T]: the first id of every space that does not have the slice."""
        return np.take_along_axis(self.table, depths, 1)

    def alloc(self, depths: np.ndarray) -> PerBucket:
        """The same as widths of buckets."""
        return PerBucket(tuple(e[1:-1] for e in self.edges), tuple(
            tuple(row[:len(e) - 1]) for row, e in zip(self._reached(depths).tolist(), self.edges, strict=True)))

    @property
    def candidates(self) -> list[int]:
        """All widths that a bucket can have, rising."""
        if self.mode == "single":
            return [0, *accumulate(self.widths)]
        return sorted({sum(some) for n in range(len(self.widths) + 1) for some in combinations(self.widths, n)})

    def cost(self, depths: np.ndarray) -> int:
        """Values that the network of :meth:`alloc` stores: rows, and the maps of the widths used (none for D)."""
        rows, widths, dim = np.diff(self.table), self._reached(depths), sum(self.widths)
        mapped = set(np.unique(widths[rows > 0]).tolist()) - {dim}
        return int((rows * widths).sum()) + len(rows) * dim * sum(mapped)

    def _reached(self, depths: np.ndarray) -> np.ndarray:
        """int64 [F, S]: the width of every row block, which is that of the slices that reach it."""
        reached = depths[:, None] > np.arange(self.table.shape[1] - 1)[:, None]  # [F, S, T]
        return cast(np.ndarray, (reached * np.array(self.widths)).sum(2))

    def smallest(self) -> int:
        """What the cheapest choice costs that keeps anything."""
        single = np.zeros((len(self.edges), len(self.widths)), np.int64)
        costs = []
        for f, t in np.ndindex(single.shape):
            if self.mode == "multi" or t == 0:
                single[f, t] = 1
                costs.append(self.cost(single))
                single[f, t] = 0
        return min(costs)


class BlockEmbedding(RowEmbedding):
    """One table whose picked blocks live: the others are zero, constantly, and have no gradient.

    ``e_k = sum_t [k < limit_t] E_t[k] P_t`` for id k: each slice t of width d_t has a table and, for every id space, a
    linear map [d_t, D] of its own. "Neural Input Search for Large Scale Recommendation Models" (NIS), KDD 2020,
    reconstructed. Slices are tables of their own, so that a row-wise optimiser does not move what a batch leaves out,
    by its moments either; the maps, which are small, it does.

    Shapes: U touched rows, F id spaces, T slices.

    Args:
        schema: the log.
        widths: d_1 .. d_T; they add up to D.

    Attributes:
        limits: int64 [F, T], the row at which each slice of each id space ends, in the layout of all id spaces.
    """

    limits: Tensor

    def __init__(self, schema: Schema, widths: tuple[int, ...]) -> None:
        super().__init__(schema, sum(widths))
        self.slices = nn.ModuleList(Table(schema.total_vocab, w, INIT_SD) for w in widths)
        self.maps = projection(len(schema.id_spaces), self.dim, self.dim)  # the slices' maps on top of each other
        self.register_buffer("limits", self.bounds[1:, None].repeat(1, len(widths)), persistent=False)

    def pick(self, limits: np.ndarray) -> None:
        """Let the first ``limits`` [F, T] ids of every space live, slice by slice."""
        self.limits.copy_(self.bounds[:-1, None] + torch.from_numpy(limits).to(self.bounds.device))

    def rows(self, touched: Touched) -> Tensor:
        """[U, D]."""
        kept = touched.rows[:, None] < self.limits.index_select(0, touched.spaces)  # [U, T]
        slices = []
        for table, column in zip(self.slices, kept.unbind(1), strict=True):
            place = column.nonzero().squeeze(1)
            values = F.embedding(touched.rows[place], cast(Table, table).weight, sparse=True)
            slices.append(values.new_zeros(len(kept), values.shape[1]).index_copy(0, place, values))
        return touched.times(torch.cat(slices, 1), self.maps)


@dataclass(frozen=True)
class NIS:
    """Which ids have which widths, by a policy over the blocks of every table.

    "Neural Input Search for Large Scale Recommendation Models", KDD 2020; there is no public code, so that grid,
    reward and controller follow the text and the rest is reconstructed. The network's weights are shared by all
    choices: every step on ``train`` goes through the blocks of one drawn action. Every ``every`` steps the policy
    learns from the rewards of several actions on the same rows of ``arch``:
    ``reward = quality - penalty * max(0, cost / budget - 1)``. Nothing is gained below the budget; otherwise the empty
    table would be the goal. The cost counts the values that the retrained network stores, its linear maps too: without
    these, widths would be free where an id space is small. At the end the most probable action is taken, or, where it
    is over the budget, the best of the last ones drawn inside it.

    Ids rise by falling frequency, so that the first row blocks are the popular ones. Buckets of numbers rise with the
    number: their id spaces have a single row block.

    Attributes:
        mode: ``single``: a width per id space and how many of its ids have it; ``multi``: a width per row block.
        budget: values to store, as a share of the dense table's; in bytes the share is the same.
        row_cuts: cumulative shares at which row blocks end, rising; the last block takes the rest.
        shares_of: what ``row_cuts`` are shares of: ``ids`` or their ``occurrences`` on ``train``.
        column_cuts: cumulative shares of the host's width at which slices end, rising; the last takes the rest.
        quality: ``auc``, or ``recall``: how often a positive is among the best ``top`` of itself and ``negatives``
            negatives drawn from the batch.
        top, negatives: of ``recall``.
        penalty: of the reward, per whole budget in excess. Where it outweighs what quality there is to gain, the
            policy flees far below the budget.
        learning_rate: of Adam on the policy's logits, which take some hundreds of steps to make up their mind.
        entropy: weight of the policy's entropy after the warm-up; it falls to zero linearly.
        warm_up: share of the planned steps in which actions are drawn uniformly and the policy rests: blocks that
            were never trained look bad.
        every: weight steps per step of the policy.
        samples: actions per step of the policy, at least 2.
        reward_rows: rows of ``arch`` (about, over all ranks) per reward. AUC on few rows is noise, though a common
            one.
        epochs: passes over ``train``.
    """

    mode: Mode = "multi"
    budget: float = 0.5
    row_cuts: tuple[float, ...] = (0.1, 0.3, 0.6, 0.9)
    shares_of: Literal["ids", "occurrences"] = "ids"
    column_cuts: tuple[float, ...] = (0.25, 0.5, 0.75)
    quality: Literal["auc", "recall"] = "auc"
    top: int = 1
    negatives: int = 20
    penalty: float = 0.1
    learning_rate: float = 0.05
    entropy: float = 0.01
    warm_up: float = 0.2
    every: int = 8
    samples: int = 4
    reward_rows: int = 4096
    epochs: int = 6

    name: ClassVar[str] = "nis"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def blocks(self, rows: SearchRows, dim: int) -> Blocks:
        """The grid for a host of width ``dim``. Row blocks without ids are left out.

        Raises:
            ValueError: a slice would have no width.
        """
        edges = []
        for space, counts in zip(rows.schema.id_spaces, by_space(rows), strict=True):
            if space.kind == "numeric":
                cuts = np.zeros(0, np.int64)
            elif self.shares_of == "ids":
                cuts = np.round(np.array(self.row_cuts) * space.vocab).astype(np.int64)
            else:
                total = np.cumsum(counts)
                cuts = np.searchsorted(total, np.array(self.row_cuts) * total[-1]) + 1
            inside = np.unique(cuts[(cuts > 0) & (cuts < space.vocab)])
            edges.append((0, *inside.tolist(), space.vocab))
        widths = np.diff(np.round(np.array((0, *self.column_cuts, 1)) * dim)).astype(int)
        if widths.min() < 1:
            raise ValueError(f"column_cuts {self.column_cuts} leave a slice of a width of {dim} without a column")
        return Blocks(tuple(edges), tuple(widths.tolist()), self.mode)

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """Widths of every row block of every id space.

        The trace has per epoch the policy's ``entropy`` at its end (nats, mean over the heads) and, after the warm-up,
        mean ``reward`` and ``cost`` (share of the dense table) of the actions that were judged.

        Raises:
            ValueError: no choice but the empty one is inside the budget; actions have nothing to be compared with; a
                slice would have no width.
            RuntimeError: the policy never learnt, or never drew an action inside the budget.
        """
        if self.samples < 2:
            raise ValueError(f"samples = {self.samples}: actions are compared with each other, at least 2")
        schema, config = rows.schema, host.train
        blocks, dense = self.blocks(rows, host.dim), schema.total_vocab * host.dim
        budget = self.budget * dense
        if blocks.smallest() > budget:
            least = math.ceil(1e6 * blocks.smallest() / dense) / 1e6
            raise ValueError(f"a budget of {self.budget:g} of the dense table's {dense} values is too small: the "
                             f"smallest choice stores {blocks.smallest()} of them, a budget of {least:g}")
        seed_everything(seed)
        embedding = BlockEmbedding(schema, blocks.widths)
        # Blocks that come and go are dropout enough, and drawn values would blur the comparison of actions.
        network = replace(host, dropout=0.0).build(schema, ArchSpec.dense(schema, host.dim), embedding)
        trainer = Trainer(network, config)
        train = trainer.loader(rows.train, seed)
        parts = max(1, round(len(rows.arch) / self.reward_rows))
        arch = Endless(trainer.loader(rows.arch, seed, -(-len(rows.arch) // parts)))
        judge = _Judge(self, trainer, embedding, blocks, budget, arch, host.objective, seed)
        policy = Policy(blocks.allowed, self.learning_rate, seed)
        planned = trainer.planned = self.epochs * train.steps(0)
        embedding.pick(blocks.limits(blocks.depths(policy.draw(uniform=True)[0])))
        judged = _Judged(embedding)
        progress = Progress(self, seed, trainer, checkpoint, {"arch": arch, "policy": policy, "judged": judged})
        found = progress.found
        for epoch in progress.epochs(self.epochs):
            for step in progress.steps(train):
                warm = step.taken < self.warm_up * planned
                if not warm and step.taken % self.every == 0:
                    actions = policy.draw(self.samples)
                    rewards, costs = judge(actions)
                    found.steps += PASS * self.samples * arch.loader.batch_size / train.batch_size
                    if not torch.isnan(rewards).any():  # the batch has both labels
                        left = 1 - (step.taken / planned - self.warm_up) / (1 - self.warm_up)
                        policy.update(actions, rewards, self.entropy * left)
                        judged.add(actions, rewards, costs, budget)
                embedding.pick(blocks.limits(blocks.depths(policy.draw(uniform=warm)[0])))
            found.trace.append({"epoch": epoch, "entropy": round(policy.entropy().mean().item(), 6)})
            if judged.seen:
                reward, cost = np.mean(judged.seen, 0).tolist()
                found.trace[-1] |= {"reward": round(reward, 6), "cost": round(cost / dense, 6)}
            judged.seen.clear()
        if not policy.updates:
            raise RuntimeError(f"the policy took no step in {trainer.taken} steps: lower search_embedding.nis.every, "
                               "raise epochs, or give arch rows of both labels")
        action = policy.most_probable()
        if blocks.cost(blocks.depths(action)) > budget:
            if not judged.inside:
                raise RuntimeError(f"NIS drew no action inside a budget of {self.budget:g}: raise "
                                   "search_embedding.nis.penalty or search_embedding.nis.epochs")
            finalists = torch.tensor(sorted(set(judged.inside)))
            action = finalists[judge(finalists)[0].nan_to_num(-1).argmax()]
        found.specs[self.name] = ArchSpec.of(
            schema, self.name, host.dim, alloc=blocks.alloc(blocks.depths(action)), seed=seed,
            config={**configuration(self), "candidates": blocks.candidates})
        return found


class _Judged:
    """What the actions of a search were worth, and which blocks live.

    Attributes:
        seen: reward and cost of every action that was judged in this epoch.
        inside: the last actions inside the budget.
    """

    def __init__(self, embedding: BlockEmbedding) -> None:
        self.embedding = embedding
        self.seen: list[tuple[float, float]] = []
        self.inside: deque[tuple[int, ...]] = deque(maxlen=FINALISTS)

    def add(self, actions: Tensor, rewards: Tensor, costs: list[int], budget: float) -> None:
        """Note ``actions`` [K, H], their ``rewards`` [K] and what they cost."""
        self.seen += zip(rewards.tolist(), costs, strict=True)
        self.inside += [tuple(a.tolist()) for a, c in zip(actions, costs, strict=True) if c <= budget]

    def state(self) -> dict[str, Tensor]:
        """All of it."""
        return {"seen": torch.tensor(self.seen, dtype=torch.float64), "inside": torch.tensor(list(self.inside)),
                "limits": self.embedding.limits}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Be as :meth:`state` said."""
        self.seen = [(reward, cost) for reward, cost in state["seen"].tolist()]
        self.inside = deque(map(tuple, state["inside"].tolist()), FINALISTS)
        self.embedding.limits.copy_(state["limits"])


class _Judge:
    """Rewards of actions on the same rows, by the weights as they are. Every call takes the next rows of ``arch``.

    Normalisations take the statistics of these rows: running ones are a mixture over all actions.
    """

    def __init__(self, method: NIS, trainer: Trainer, embedding: BlockEmbedding, blocks: Blocks, budget: float,
                 arch: Endless, objective: str, seed: int) -> None:
        self.method, self.trainer, self.embedding, self.blocks, self.budget = method, trainer, embedding, blocks, budget
        self.arch, self.seed = arch, seed
        self.score, self.column = f"{objective}@all", arch.loader.rows.schema.objective_index(objective)

    @torch.no_grad()
    def __call__(self, actions: Tensor) -> tuple[Tensor, list[int]]:
        """Rewards float64 [K] of ``actions`` [K, H], NaN where the rows lack a label, and what they cost."""
        batch = next(self.arch).to(self.trainer.device)
        labels = batch.labels[:, self.column]
        there = ~torch.isnan(labels)
        quality = self._quality(labels[there].cpu().numpy())
        rewards, costs = [], []
        for depths in map(self.blocks.depths, actions):
            self.embedding.pick(self.blocks.limits(depths))
            with self.trainer.autocast():
                scores = self.trainer.model.predict(batch)[self.score]
            costs.append(self.blocks.cost(depths))
            excess = max(0.0, costs[-1] / self.budget - 1)
            rewards.append(quality(scores[there].float().cpu().numpy()) - self.method.penalty * excess)
        return ranks.mean(torch.tensor(rewards, dtype=torch.float64, device=self.trainer.device)).cpu(), costs

    def _quality(self, labels: np.ndarray) -> Callable[[np.ndarray], float]:
        """Scores [N] of the rows → their quality; what is drawn is the same for all scores."""
        positive, negative = np.flatnonzero(labels > 0), np.flatnonzero(labels <= 0)
        if not len(positive) or not len(negative):
            return lambda _: float("nan")
        if self.method.quality == "auc":
            return lambda scores: metrics.auc(labels, scores)
        rng = np.random.default_rng([self.seed, 0x6E6973, self.arch.epoch, self.arch.step])
        drawn = rng.choice(negative, (len(positive), self.method.negatives))
        return lambda scores: recall(scores[positive], scores[drawn], self.method.top)


def recall(positives: np.ndarray, negatives: np.ndarray, top: int) -> float:
    """How often a positive is among the best ``top`` of itself and its negatives.

    Ties count with their expected value, so that a constant score does not look perfect.

    Args:
        positives: scores [P].
        negatives: scores [P, N].
        top: how many are retrieved.
    """
    above = (negatives > positives[:, None]).sum(1)
    tied = (negatives == positives[:, None]).sum(1)
    return float(np.clip((top - above) / (1 + tied), 0, 1).mean())
