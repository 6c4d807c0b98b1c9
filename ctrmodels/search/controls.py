"""The random control: an architecture of equal cost that nobody searched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctrmodels.archspec import ArchSpec, PerField, Uniform, ValueMask, all_pairs
from ctrmodels.data.schema import Schema

TOLERANCE = 0.02
ATTEMPTS = 200


def random_control(spec: ArchSpec, schema: Schema, seed: int) -> ArchSpec:
    """A random architecture that costs what ``spec`` costs, in the part that ``spec`` speaks of.

    Widths: random ones from the same candidates whose parameters come within 2 % (or as near as can be) of
    the spec's. Value masks: as many random values, from the same initial ones. Interactions: as many random
    pairs.

    Raises:
        ValueError: the spec is not searched, so that there is nothing to draw.
    """
    rng = np.random.default_rng([seed, 0x726E64])
    changes: dict[str, object] = {}
    if isinstance(spec.alloc, PerField):
        changes["alloc"] = PerField(_random_widths(spec, spec.alloc, schema, rng))
    elif isinstance(spec.alloc, ValueMask):
        mask = np.zeros(spec.alloc.mask.size, bool)
        mask[rng.choice(mask.size, int(spec.alloc.mask.sum()), replace=False)] = True
        changes["alloc"] = ValueMask(mask.reshape(spec.alloc.mask.shape), spec.alloc.init)
    elif isinstance(spec.alloc, Uniform):
        raise ValueError("a uniform width has no random control")
    if spec.interactions is not None:
        pairs = all_pairs(schema)
        drawn = sorted(rng.choice(len(pairs), len(spec.interactions), replace=False))
        changes["interactions"] = tuple(pairs[i] for i in drawn)
    return replace(spec, method=f"random({spec.method})", cost=None, result={}, **changes)  # type: ignore[arg-type]


def _random_widths(spec: ArchSpec, alloc: PerField, schema: Schema, rng: np.random.Generator) -> tuple[int, ...]:
    """Widths drawn at random, then moved one by one at random towards the target until they cost the same."""
    candidates = np.array(sorted(set(spec.config.get("candidates", ())) | set(alloc.dims)))
    vocab = np.array([f.vocab for f in schema.id_spaces])

    def cost(widths: np.ndarray) -> int:
        projections = np.where(widths == spec.out_dim, 0, widths * spec.out_dim)
        return int((widths * vocab + projections).sum())

    target = cost(np.array(alloc.dims))
    best, best_gap = np.array(alloc.dims), np.inf
    for _ in range(ATTEMPTS):
        widths = rng.choice(candidates, len(vocab))
        gap = abs(cost(widths) - target)
        for _ in range(ATTEMPTS):
            trial = widths.copy()
            trial[rng.integers(len(vocab))] = rng.choice(candidates)
            trial_gap = abs(cost(trial) - target)
            if trial_gap < gap:
                widths, gap = trial, trial_gap
            if gap <= TOLERANCE * target:
                break
        if gap < best_gap and tuple(widths) != alloc.dims:
            best, best_gap = widths, gap
        if best_gap <= TOLERANCE * target:
            break
    return tuple(int(w) for w in best)
