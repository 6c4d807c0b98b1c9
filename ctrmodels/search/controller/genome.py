"""Genomes of micro-networks: one string of operations each.

A genome is int8 [M, S], for M micro-networks of at most S slots. Genes are those of :mod:`ctrmodels.nn.micronet`; a 0
ends a string, so that a string which starts with it is no micro-network at all. What stands behind it is silent: it is
inherited and may come back, but two genomes that differ there alone are the same micro-networks.
"""

from __future__ import annotations

import numpy as np

SYMBOLS = 5


def canonical(genome: np.ndarray) -> np.ndarray:
    """The same micro-networks with zeros behind the end of every string: what is there means nothing."""
    return (genome * np.logical_and.accumulate(genome != 0, axis=-1)).astype(np.int8)


def draw(rng: np.random.Generator, n: int, slots: int) -> np.ndarray:
    """A random genome. How many of its micro-networks exist is random as well, from hardly any to nearly all."""
    genes = rng.integers(SYMBOLS, size=(n, slots))
    genes[:, 0] = rng.integers(1, SYMBOLS, size=n) * (rng.random(n) < rng.random())
    return genes.astype(np.int8)


def crossover(a: np.ndarray, b: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` children [n, M, S]: ``a`` with the genes of ``b`` behind one point, or between two; either is as likely."""
    points = np.sort(rng.integers(1, max(a.size, 2), size=(n, 2)), axis=1)
    points[rng.random(n) < 0.5, 1] = a.size
    place = np.arange(a.size)
    taken = (points[:, :1] <= place) & (place < points[:, 1:])
    return np.where(taken.reshape(n, *a.shape), b, a)


def mutate(genome: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Every gene of one or more genomes becomes another one with probability ``rate``."""
    other = (genome + rng.integers(1, SYMBOLS, size=genome.shape)) % SYMBOLS
    return np.where(rng.random(genome.shape) < rate, other, genome).astype(np.int8)
