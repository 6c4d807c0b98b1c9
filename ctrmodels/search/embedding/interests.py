"""The interest graph of a log's items, the domains in it, and how tightly an embedding holds them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from ctrmodels.archspec import CentralResidual
from ctrmodels.data.dataset import PADDING, Batch, Rows
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.table import Layout

CHUNK = 1 << 16  # histories at a time
ROUNDS = 20  # at most, of label propagation


def interest_graph(rows: Rows, item: str, window: int = 2, neighbours: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Which items lie close together in behaviour histories, and how closely.

    Interest persists for a while, so that items near each other in a history are mostly of one domain ("Res-embedding
    for Deep Learning Based Click-Through Rate Prediction Modeling", DLP-KDD 2019). With n_ij the number of users
    (:func:`histories` says who counts as one) whose history has i and j within ``window`` steps, d_i the sum of n_ij
    over j and T that of d_i, an edge weighs ``(n_ij - d_i d_j / T) / sqrt(d_i d_j)``: what exceeds chance, in units
    of chance's own spread. Popular items, which are near everything, exceed it no more than others, and pairs seen
    once do not stand out as they do by mutual information.

    Args:
        rows: of ``train`` alone, since histories of later rows tell what they are to predict.
        item: the field whose sequences are read; its last id, which stands for many values, has no edges.
        window: steps between two items, at most.
        neighbours: heaviest edges kept per item.

    Returns:
        int32 [I, 1 + neighbours], every item itself, then its neighbours by falling weight, then -1; and float32
        weights of the same shape. An item's edge to itself weighs as much as its heaviest other one, 1 if it has none.
    """
    size = next(f.vocab for f in rows.schema.id_spaces if f.name == item)
    near = sparse.csr_array((size, size), dtype=np.float64)
    for field in rows.schema.sequence_fields:
        if field.of == item:
            for steps, owner in histories(rows, field.name):
                near = near + _pairs(np.where(steps == size - 1, PADDING, steps), owner, window, size)
    near = (near + near.T).tocoo()
    degree = near.sum(0)
    chance = degree[near.row] * degree[near.col] / max(degree.sum(), 1.0)
    weight = (near.data - chance) / np.sqrt(degree[near.row] * degree[near.col])
    kept = weight > 0
    return _lists(near.row[kept], near.col[kept], weight[kept], size, neighbours)


def histories(rows: Rows, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The distinct histories of sequence ``name`` and whose they are, chunk by chunk.

    Rows repeat what is known of a user. The user is the row's group; in a log without groups every distinct history
    is taken for a user's. All histories of a group come in one chunk.

    Yields:
        int32 [n, L] steps, and int64 [n] the owner's number within the chunk.
    """
    steps, groups = rows.sequences[name], rows.group
    if not len(steps):
        return
    factors = np.random.default_rng(0).integers(1 << 63, size=steps.shape[1] + 1, dtype=np.uint64) | np.uint64(1)
    keys = np.concatenate([
        steps[a:a + CHUNK].astype(np.uint64) @ factors[1:] + groups[a:a + CHUNK].astype(np.uint64) * factors[0]
        for a in range(0, len(steps), CHUNK)])  # of 64 bits: no two histories share one
    first = np.unique(keys, return_index=True)[1]
    owner = np.unique(groups[first], return_inverse=True)[1] if groups.any() else np.arange(len(first))
    order = np.argsort(owner, kind="stable")
    first, owner = first[order], owner[order]
    begins = np.flatnonzero(np.diff(owner, prepend=-1))  # of the owners
    cuts = begins[np.unique(np.searchsorted(begins, np.arange(0, len(first), CHUNK), side="right") - 1)]
    for a, b in zip(cuts, [*cuts[1:], len(first)], strict=True):
        yield np.asarray(steps[first[a:b]]), owner[a:b] - owner[a]


def _pairs(steps: np.ndarray, owner: np.ndarray, window: int, size: int) -> sparse.csr_array:
    """[I, I] above the diagonal, number of owners with both items within ``window`` steps."""
    found = []
    for apart in range(1, window + 1):
        one, other = steps[:, :-apart], steps[:, apart:]
        there = (one >= 0) & (other >= 0) & (one != other)
        whose = np.broadcast_to(owner[:, None], one.shape)[there]
        low, high = np.minimum(one, other)[there], np.maximum(one, other)[there]
        found.append(np.unique((whose * size + low) * size + high))
    pairs = np.unique(np.concatenate(found)) % (size * size)
    return sparse.csr_array((np.ones(len(pairs)), (pairs // size, pairs % size)), shape=(size, size))


def _lists(row: np.ndarray, col: np.ndarray, weight: np.ndarray, size: int,
           neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The heaviest edges of every item, see :func:`interest_graph`."""
    order = np.lexsort((col, -weight, row))
    row, col, weight = row[order], col[order], weight[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(size))[row]
    kept = place < neighbours
    near = np.full((size, 1 + neighbours), -1, np.int32)
    weights = np.zeros(near.shape, np.float32)
    near[:, 0] = np.arange(size)
    near[row[kept], 1 + place[kept]] = col[kept]
    weights[row[kept], 1 + place[kept]] = weight[kept]
    weights[:, 0] = np.where(near[:, 1] >= 0, weights[:, 1], 1.0)
    return near, weights


def interest_domains(alloc: CentralResidual) -> np.ndarray:
    """int64 [I], the domain of every item, -1 for items without neighbours.

    Domains are found by label propagation ("Near linear time algorithm to detect community structures in large-scale
    networks", Physical Review E 76, 2007), all items at a time: each takes the label that weighs most among its
    neighbours and itself, until no label changes.
    """
    row, place = np.nonzero(alloc.neighbours >= 0)
    size = len(alloc.neighbours)
    graph = sparse.csr_array((alloc.weights[row, place], (row, alloc.neighbours[row, place])), shape=(size, size))
    graph = graph + graph.T
    label = np.arange(size)
    for _ in range(ROUNDS):
        votes = graph @ sparse.csr_array((np.ones(size), (np.arange(size), label)), shape=(size, size))
        new = np.asarray(votes.argmax(axis=1)).ravel()
        if np.array_equal(new, label):
            break
        label = new
    joined = np.diff(graph.indptr) > 1
    found = np.full(size, -1)
    found[joined] = np.unique(label[joined], return_inverse=True)[1]
    return found


@dataclass(frozen=True)
class Envelope:
    """How tightly an embedding holds domains of items together.

    Attributes:
        radii: float64 [domains], ``r_z = max over the items of z of |e_i - centre of z|``.
        separation: root mean square distance between the centres of two domains.
    """

    radii: np.ndarray
    separation: float

    @property
    def radius(self) -> float:
        """Mean of ``radii``."""
        return float(self.radii.mean())

    @property
    def ratio(self) -> float:
        """``radius / separation``, which no scale of the embedding changes."""
        return self.radius / self.separation


@torch.no_grad()
def envelope(embedding: FieldEmbedding, schema: Schema, item: str, domains: np.ndarray) -> Envelope:
    """The envelope radii of item domains in any trained embedding; the paper's bound grows with them.

    Args:
        embedding: whose vectors of the field ``item`` are looked at.
        schema: of its log.
        item: the field.
        domains: int [vocab of item], items with -1 are left out.

    Raises:
        ValueError: fewer than two domains.
    """
    inside = np.flatnonzero(domains >= 0)
    names, member = np.unique(domains[inside], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} domains have no distance between them")
    n, column = len(inside), schema.id_index(item)
    ids = torch.zeros(n, len(schema.id_fields), dtype=torch.int32)
    ids[:, column] = torch.from_numpy(inside)
    batch = Batch(ids, torch.zeros(n, len(schema.numeric_fields)),
                  {f.name: torch.full((n, f.max_length), PADDING, dtype=torch.int32) for f in schema.sequence_fields},
                  torch.zeros(n, len(schema.objectives)), torch.zeros(n, dtype=torch.int32))
    device = next(embedding.parameters()).device
    batch, layout = batch.to(device), Layout(schema).to(device)
    vectors = embedding(batch, layout(batch))[:, column].double().cpu().numpy()
    to_domain = sparse.csr_array((np.ones(n), (member, np.arange(n))))
    centres = to_domain @ vectors / np.bincount(member)[:, None]
    radii = np.zeros(len(names))
    np.maximum.at(radii, member, np.linalg.norm(vectors - centres[member], axis=1))
    spread = np.square(centres - centres.mean(0)).sum(1).sum() / (len(names) - 1)
    return Envelope(radii, float(np.sqrt(2 * spread)))
