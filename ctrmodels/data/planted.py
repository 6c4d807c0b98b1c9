"""Small logs with a planted truth, already encoded: what a search or a model must find is known exactly.

Each generator plants the one property that one method is about, so a calibrated test can tell a method that
works from a stub. Draws come from ``numpy.random.default_rng(seed)`` alone: equal arguments, equal rows.
For a whole raw log (funnel, positions, histories, days) see :mod:`ctrmodels.data.simulator`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import ROLES, Field, Objective, Schema

SHARES = (0.7, 0.1, 0.1, 0.1)  # of train, arch, valid, test
Side = Literal["user", "item", "context"]
CLICK = (Objective("click"),)


@dataclass(frozen=True)
class Planted:
    """Encoded rows by role, and what was planted in them.

    Attributes:
        roles: ``train``, ``arch``, ``valid``, ``test`` → their rows. Ids follow the contract of ``encode``:
            rank by falling frequency on ``train``, the last id for values that ``train`` does not have.
        truth: what the generator planted; its function says which keys. ``truth["probability"]`` is always
            there: role → true probabilities [N], or objective → role → [N] where there are several.
        counts: int64 [total_vocab], how often each id occurs on ``train``.
    """

    roles: dict[str, Rows]
    truth: dict[str, Any]
    counts: np.ndarray

    @property
    def schema(self) -> Schema:
        """The description that all roles share."""
        return self.roles["train"].schema

    def save(self, folder: Path) -> None:
        """Write the rows as the stage ``encode`` would, for :class:`ctrmodels.data.Dataset` to open."""
        folder.mkdir(parents=True, exist_ok=True)
        self.schema.save(folder / "schema.json")
        np.save(folder / "counts.npy", self.counts)
        start = 0
        for role, rows in self.roles.items():
            out = folder / role
            out.mkdir()
            columns = {"ids": rows.ids, "numeric": rows.numeric, "labels": rows.labels, "group": rows.group,
                       "position": rows.position, "time": rows.time,
                       "row": np.arange(start, start + len(rows), dtype=np.int64)}
            columns |= {f"sequence.{name}": steps for name, steps in rows.sequences.items()}
            for name, values in columns.items():
                np.save(out / f"{name}.npy", values)
            start += len(rows)


def in_memory(schema: Schema, ids: np.ndarray, labels: np.ndarray, group: np.ndarray | None = None,
              sequences: Mapping[str, np.ndarray] | None = None, time: np.ndarray | None = None) -> Rows:
    """Rows of id fields and sequences, around plain arrays.

    Args:
        schema: their description; without numeric fields.
        ids: [N, F] field-local ids.
        labels: [N, K] or, for one objective, [N]; NaN where unknown.
        group: int64 [N] list of each row; ``None`` = the log has no lists.
        sequences: [N, L] steps by name.
        time: int64 [N] seconds; ``None`` = all rows are of one moment.
    """
    n = len(ids)
    zeros = np.zeros(n, np.int64)
    return Rows.of(schema, np.ascontiguousarray(ids, np.int32), np.zeros((n, 0), np.float32), dict(sequences or {}),
                   np.asarray(labels, np.float32).reshape(n, -1), np.zeros(n, np.int32),
                   zeros if group is None else group.astype(np.int64), zeros if time is None else time)


def planted_pairs(seed: int, rows: int = 40_000, fields: int = 10, values: int = 20, pairs: int = 6,
                  rank: int = 4) -> Planted:
    """Uniform ids whose label depends on ``pairs`` of all field pairs, and on nothing else.

    Every value v of field f has factors ``z_f(v)`` in R^rank; a planted pair adds ``<z_i, z_j>`` scaled to
    unit standard deviation to the logit. A search for interactions has to keep these pairs and drop the rest.

    Truth: ``pairs``, sorted list of (i, j); ``effects``, (i, j) → float [vocab_i, vocab_j], the pair's part
    of the logit by the two ids (0 for the out-of-vocabulary id).
    """
    rng = np.random.default_rng(seed)
    every = list(combinations(range(fields), 2))
    chosen = sorted(every[k] for k in rng.choice(len(every), pairs, replace=False))
    factors = rng.standard_normal((fields, values, rank))
    drawn = rng.integers(values, size=(rows, fields))
    effects = {}
    for i, j in chosen:
        effect = factors[i] @ factors[j].T
        effects[i, j] = (effect - effect.mean()) / effect.std()
    p = _sigmoid(sum((e[drawn[:, i], drawn[:, j]] for (i, j), e in effects.items()), np.zeros(rows)))
    encoded = _Encoded(drawn, [values] * fields)
    by_id = {(i, j): encoded.by_id(encoded.by_id(e, i).T, j).T for (i, j), e in effects.items()}
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "pairs": chosen, "effects": by_id})


def planted_sparse(seed: int, rows: int = 40_000, small: int = 4, large: int = 4, values: int = 20, many: int = 4_000,
                   pairs: int = 3) -> Planted:
    """Fields of few ids, some pairs of which interact, beside fields of many ids, none of which do.

    Every value of every field adds a number of its own to the logit, ``N(0, 0.5²)``. ``pairs`` of the first ``small``
    fields, with ``values`` ids each, add ``<z_i, z_j>`` of 4 factors, scaled to unit standard deviation. The other
    ``large`` fields have ``many`` ids, so that two of them are seldom seen together twice. A statistic of pairs must
    not take what is seen once for information.

    Truth: ``pairs``, sorted list of (i, j).
    """
    rng = np.random.default_rng(seed)
    sizes = [values] * small + [many] * large
    drawn = np.stack([rng.integers(n, size=rows) for n in sizes], axis=1)
    logit = np.zeros(rows)
    for f, n in enumerate(sizes):
        logit += 0.5 * rng.standard_normal(n)[drawn[:, f]]
    every = list(combinations(range(small), 2))
    chosen = sorted(every[k] for k in rng.choice(len(every), pairs, replace=False))
    for i, j in chosen:
        left, right = rng.standard_normal((2, values, 4))
        effect = left @ right.T
        logit += ((effect - effect.mean()) / effect.std())[drawn[:, i], drawn[:, j]]
    p = _sigmoid(logit)
    encoded = _Encoded(drawn, sizes)
    return encoded.planted((rng.random(rows) < p)[:, None], {"probability": encoded.by_role(p), "pairs": chosen})


def planted_triples(seed: int, rows: int = 60_000, fields: int = 10, values: int = 12, triples: int = 2,
                    hidden: int = 0, rank: int = 2, scale: float = 1.0) -> Planted:
    """Uniform ids whose label depends on some triples of fields and on all pairs inside them.

    A triple adds ``sum_r z_ir z_jr z_kr`` of factors of its own, each of its pairs ``<z'_i, z'_j>`` of others, all
    scaled to standard deviation ``scale`` in the logit; triples share no field. A ``hidden`` triple shows in none of
    its pairs: it adds the product of three signs, of which every field has as many of either kind. A search that grows
    interactions from those of one order less must find the triples and miss the hidden ones.

    Truth: ``pairs``, ``triples`` and ``hidden``, sorted lists of fields.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(fields)[:3 * (triples + hidden)].reshape(-1, 3)
    chosen = [tuple(sorted(t)) for t in order.tolist()]
    drawn = rng.integers(values, size=(rows, fields))
    logit = np.zeros(rows)
    for place, triple in enumerate(chosen):
        if place < triples:
            parts = [*combinations(triple, 2), triple]
            factors = [rng.standard_normal((len(part), values, rank)) for part in parts]
        else:
            parts = [triple]
            factors = [rng.permuted(np.tile(np.resize([-1.0, 1.0], values), (3, 1)), axis=1)[..., None]]
        for part, z in zip(parts, factors, strict=True):
            effect = np.prod([z[s][drawn[:, f]] for s, f in enumerate(part)], axis=0).sum(1)
            logit += scale * (effect - effect.mean()) / effect.std()
    p = _sigmoid(logit)
    encoded = _Encoded(drawn, [values] * fields)
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "triples": sorted(chosen[:triples]), "hidden": sorted(chosen[triples:]),
        "pairs": sorted(pair for t in chosen[:triples] for pair in combinations(t, 2))})


def planted_functions(seed: int, rows: int = 40_000, fields: int = 6, values: int = 20, rank: int = 3) -> Planted:
    """Uniform ids whose pairs of fields interact by different functions of different factors.

    One half of the pairs adds ``<z_i, z_j>``, the other ``sum_r k_ijr w_ir w_jr`` with signs ``k`` of its own, all
    scaled to the same standard deviation. No one embedding serves both well: a search that gives every function its
    own has to match the best single function.

    Truth: ``inner`` and ``kernel``, the pairs of either half.
    """
    rng = np.random.default_rng(seed)
    every = list(combinations(range(fields), 2))
    order = rng.permutation(len(every))
    drawn = rng.integers(values, size=(rows, fields))
    z, w = rng.standard_normal((2, fields, values, rank))
    logit = np.zeros(rows)
    for place in order:
        i, j = every[place]
        if place in order[:len(every) // 2]:
            effect = (z[i][drawn[:, i]] * z[j][drawn[:, j]]).sum(1)
        else:
            effect = (rng.choice([-1.0, 1.0], rank) * w[i][drawn[:, i]] * w[j][drawn[:, j]]).sum(1)
        logit += 0.6 * (effect - effect.mean()) / effect.std()
    p = _sigmoid(logit)
    encoded = _Encoded(drawn, [values] * fields)
    halves = [sorted(every[k] for k in half) for half in np.split(order, [len(every) // 2])]
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "inner": halves[0], "kernel": halves[1]})


def planted_groups(seed: int, rows: int = 40_000, fields: int = 10, values: int = 10, effect: float = 1.6) -> Planted:
    """Fields that count only together: one group of three, and one of two.

    Every value of a field has a code of +1 or -1, as many of each; the logit is ``effect`` times the product of the
    codes of fields 1, 4 and 7, plus ``effect`` times that of fields 0 and 5. No field, and no pair of the three, says
    anything by itself. A search for groups has to put the three into one of order 3.

    Truth: ``groups``, the tuples of fields; ``codes``, float [fields, vocab] by id (0 for the out-of-vocabulary id).
    """
    rng = np.random.default_rng(seed)
    codes = rng.permuted(np.where(np.arange(values) % 2, 1.0, -1.0)[None].repeat(fields, 0), axis=1)
    drawn = rng.integers(values, size=(rows, fields))
    code = codes[np.arange(fields), drawn]
    groups = ((0, 5), (1, 4, 7))
    p = _sigmoid(effect * sum((code[:, group].prod(axis=1) for group in groups), np.zeros(rows)))
    encoded = _Encoded(drawn, [values] * fields)
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "groups": groups,
        "codes": np.stack([encoded.by_id(codes[f], f) for f in range(fields)])})


def planted_head(seed: int, rows: int = 40_000, fields: int = 4, values: int = 300, zipf: float = 1.2,
                 rank: int = 3, head: int = 30, scale: float = 0.9) -> Planted:
    """Zipf ids of which only the ``head`` most frequent values of each field carry information.

    The logit is that of a factorisation machine, ``sum_{i<j} <z_i, z_j>``, with ``z ~ N(0, scale²)`` in
    R^rank for head values and 0 for all others. A search for embedding sizes has to keep the head and prune
    the tail.

    Truth: ``head``, field name → bool [vocab], true for ids that carry factors (the head of the *drawing*
    distribution: on ``train`` a few of them may rank just behind ``head``).
    """
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((fields, values, rank)) * scale
    factors[:, head:] = 0.0
    drawn = rng.choice(values, size=(rows, fields), p=_zipf(values, zipf))
    z = factors[np.arange(fields), drawn]
    p = _sigmoid(0.5 * (z.sum(axis=1) ** 2 - (z**2).sum(axis=1)).sum(axis=1))
    encoded = _Encoded(drawn, [values] * fields)
    informative = {name: encoded.by_id(np.arange(values) < head, f) for f, name in enumerate(encoded.names)}
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "head": informative})


def planted_widths(seed: int, rows: int = 30_000, rank: int = 12, values: int = 100) -> Planted:
    """Fields that need different embedding widths.

    Fields 0 and 1 interact through ``<z_0, z_1>`` of ``rank`` factors; fields 2 to 7 only add a number of
    their own. All ids are uniform, so that every id has rows enough to show what width its field needs. A
    search for widths has to give the first two more.

    Truth: ``wide``, the indices of the fields that need width; ``rank``.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(values, size=(rows, 8))
    factors = rng.standard_normal((2, values, rank))
    interaction = (factors[0][drawn[:, 0]] * factors[1][drawn[:, 1]]).sum(axis=1)
    additive = 0.4 * rng.standard_normal((6, values))
    p = _sigmoid(2.0 * interaction / np.sqrt(rank) + additive[np.arange(6), drawn[:, 2:]].sum(axis=1))
    encoded = _Encoded(drawn, [values] * 8)
    return encoded.planted((rng.random(rows) < p)[:, None], {
        "probability": encoded.by_role(p), "wide": [0, 1], "rank": rank})


def planted_ranks(seed: int, rows: int = 40_000, values: int = 60, ranks: Sequence[int] = (1, 2, 6)) -> Planted:
    """Pairs of fields whose interactions have different ranks.

    Fields 2p and 2p + 1 interact through ``<z, z'>`` of ``ranks[p]`` factors, scaled to unit standard deviation, and
    with no other field; ids are uniform. A search for embedding dimensions has to keep more of them where the rank is
    higher.

    Truth: ``rank``, that of every field.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(values, size=(rows, 2 * len(ranks)))
    logit = np.zeros(rows)
    for p, rank in enumerate(ranks):
        left, right = rng.standard_normal((2, values, rank))
        effect = left @ right.T
        logit += ((effect - effect.mean()) / effect.std())[drawn[:, 2 * p], drawn[:, 2 * p + 1]]
    p_true = _sigmoid(1.2 * logit)
    encoded = _Encoded(drawn, [values] * 2 * len(ranks))
    return encoded.planted((rng.random(rows) < p_true)[:, None], {
        "probability": encoded.by_role(p_true), "rank": [r for r in ranks for _ in range(2)]})


def planted_funnel(seed: int, rows: int = 120_000, users: int = 800, items: int = 800) -> Planted:
    """Clicks and conversions after clicks, where items that attract clicks convert less.

    With ``s = <z_u, z_i>`` of 4-dimensional factors ``N(0, 0.8²)``: ``logit P(click) = -2.6 + b_u + b_i +
    0.8 s`` and ``logit P(conversion | click) = -1.2 + c_u + v_i - 0.5 b_i + 0.8 s``. A chain such as ESMM
    predicts the conversions of unclicked rows here, models that treat those rows wrongly do not. ``group`` is
    the user; a quarter of the rows is ``test``.

    Truth: ``probability``, name → role → [N] for ``click``, ``conversion`` (the joint event, on all rows) and
    ``conversion@click`` (given a click, known for all rows).
    """
    rng = np.random.default_rng(seed)
    zu, zi = 0.8 * rng.standard_normal((users, 4)), 0.8 * rng.standard_normal((items, 4))
    bu, cu = 0.5 * rng.standard_normal(users), 0.5 * rng.standard_normal(users)
    bi, vi = 0.9 * rng.standard_normal(items), 0.8 * rng.standard_normal(items)
    u, i = rng.integers(users, size=rows), rng.integers(items, size=rows)
    affinity = 0.8 * (zu[u] * zi[i]).sum(axis=1)
    click = _sigmoid(-2.6 + bu[u] + bi[i] + affinity)
    conversion = _sigmoid(-1.2 + cu[u] + vi[i] - 0.5 * bi[i] + affinity)
    clicked = rng.random(rows) < click
    converted = clicked & (rng.random(rows) < conversion)
    encoded = _Encoded(np.stack([u, i], axis=1), [users, items], names=("user_id", "item_id"),
                       sides=("user", "item"), shares=(0.65, 0.05, 0.05, 0.25))
    truth = {"click": click, "conversion": click * conversion, "conversion@click": conversion}
    return encoded.planted(
        np.stack([clicked, converted], axis=1),
        {"probability": {name: encoded.by_role(p) for name, p in truth.items()}},
        objectives=(Objective("click"), Objective("conversion", after="click")), group=u)


def planted_interests(seed: int, rows: int = 10_000, users: int = 2_000, items: int = 300, domains: int = 10,
                      length: int = 15, stay: float = 0.8) -> Planted:
    """Items of interest domains; a user clicks on items of the two domains that the history is about.

    A history moves between its user's two interests, each step staying in the last one's with probability ``stay``,
    so that items that follow each other are mostly of one domain. Half of the rows show an item of the user's
    interests, the others any item. Labels are few per item and histories many: an embedding that knows from the
    histories which items belong together needs fewer rows. ``train`` and ``arch`` together have three tenths of the
    rows, ``test`` half.

    Truth: ``domain``, int [vocab of item_id], the domain of every id, -1 for the out-of-vocabulary one.
    """
    rng = np.random.default_rng(seed)
    domain = rng.permutation(np.arange(items) % domains)
    members = np.stack([np.flatnonzero(domain == z) for z in range(domains)])  # [domains, items of one]
    interests = rng.random((users, domains)).argsort(1)[:, :2]
    moves = rng.random((users, length)) >= stay
    turn = (rng.integers(2, size=(users, 1)) + np.cumsum(moves, 1)) % 2
    history = members[np.take_along_axis(interests, turn, 1), rng.integers(members.shape[1], size=(users, length))]
    user = rng.integers(users, size=rows)
    fond = members[interests[user, rng.integers(2, size=rows)], rng.integers(members.shape[1], size=rows)]
    item = np.where(rng.random(rows) < 0.5, fond, rng.integers(items, size=rows))
    p = np.where((interests[user] == domain[item][:, None]).any(1), 0.65, 0.25)
    encoded = _Encoded(item[:, None], [items], names=("item_id",), sides=("item",), shares=(0.25, 0.05, 0.2, 0.5))
    return encoded.planted(
        (rng.random(rows) < p)[:, None],
        {"probability": encoded.by_role(p), "domain": encoded.by_id(domain + 1, 0) - 1}, group=user,
        sequences={"seen": (0, history[user])})


def planted_stream(seed: int, rows: int = 60_000, users: int = 500, items: int = 300, zipf: float = 1.2,
                   rank: int = 12, enough: int = 50, scale: float = 2.0) -> Planted:
    """A stream of users and items, both Zipf, whose taste is simple until they have been seen often enough.

    Users and items have ``rank`` factors. In the logit ``scale * <z_u, z_i> / sqrt(rank)`` an id counts with its first
    factor alone, and the others as 0, until it has occurred ``enough`` times; that factor is the larger, so that what
    is said of rare ids can be learnt as well. An embedding that fits what an id shows is narrow at first and wide
    later. In the middle of the stream one user and one item of the rare ones take the places of frequent ones. Rows
    are in the order of their time, one a minute.

    Truth: ``occurrences``, role → int64 [N, 2], how often the row's user and item had occurred before it;
    ``switched``, field name → the id that became frequent.
    """
    rng = np.random.default_rng(seed)
    sizes = (users, items)
    drawn = np.stack([rng.choice(n, size=rows, p=_zipf(n, zipf)) for n in sizes], axis=1)
    frequent, rare = 4, [n // 2 for n in sizes]
    for f in range(2):
        late = drawn[rows // 2:, f]
        late[late == frequent] = rare[f]
    before = np.stack([_occurrences(drawn[:, f]) for f in range(2)], axis=1)
    factors = [rng.standard_normal((n, rank)) for n in sizes]
    product = factors[0][drawn[:, 0]] * factors[1][drawn[:, 1]]
    product[(before < enough).any(axis=1), 1:] = 0.0
    p = _sigmoid(scale * product.sum(axis=1) / np.sqrt(rank))
    encoded = _Encoded(drawn, sizes, names=("user_id", "item_id"), sides=("user", "item"))
    switched = {name: int(np.flatnonzero(encoded.kept[f] == rare[f])[0]) for f, name in enumerate(encoded.names)}
    return encoded.planted(
        (rng.random(rows) < p)[:, None],
        {"probability": encoded.by_role(p), "occurrences": encoded.by_role(before), "switched": switched},
        time=60 * np.arange(rows, dtype=np.int64))


def _occurrences(values: np.ndarray) -> np.ndarray:
    """int64 [N]: how often each row's value occurs in the rows before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - first
    return found


class _Encoded:
    """Values [N, F] split into roles (rows are exchangeable, so by place) and ranked by frequency on train.

    Attributes:
        parts: role → slice of its rows.
        kept: per field, the values that ``train`` has, in the order of their ids.
        to_id: per field, int32, the id of every value.
        ids: int32 [N, F].
        counts: int64 [total_vocab].
    """

    def __init__(self, values: np.ndarray, sizes: Sequence[int], names: Sequence[str] | None = None,
                 sides: Sequence[Side] | None = None, shares: Sequence[float] = SHARES) -> None:
        self.names = tuple(names or (f"field_{f}" for f in range(len(sizes))))
        self.sides: Sequence[Side] = sides or ["context"] * len(sizes)
        cuts = [0, *np.round(np.cumsum(shares) * len(values)).astype(int).tolist()]
        self.parts = {role: slice(a, b) for role, a, b in zip(ROLES, cuts[:-1], cuts[1:], strict=True)}
        self.ids = np.empty(values.shape, np.int32)
        self.kept, self.to_id, counts = [], [], []
        for f, size in enumerate(sizes):
            seen = np.bincount(values[self.parts["train"], f], minlength=size)
            kept = np.argsort(-seen, kind="stable")[:np.count_nonzero(seen)]
            to_id = np.full(size, len(kept), np.int32)
            to_id[kept] = np.arange(len(kept), dtype=np.int32)
            self.ids[:, f] = to_id[values[:, f]]
            self.kept.append(kept)
            self.to_id.append(to_id)
            counts.append(np.append(seen[kept], 0))
        self.counts = np.concatenate(counts).astype(np.int64)

    def by_id(self, table: np.ndarray, field: int) -> np.ndarray:
        """``table`` by value of ``field`` as a table by id; zero for the out-of-vocabulary id."""
        return np.concatenate([table[self.kept[field]], np.zeros((1, *table.shape[1:]), table.dtype)])

    def by_role(self, column: np.ndarray) -> dict[str, np.ndarray]:
        """A column of all rows, cut into roles."""
        return {role: column[part] for role, part in self.parts.items()}

    def planted(self, labels: np.ndarray, truth: dict[str, Any], objectives: tuple[Objective, ...] = CLICK,
                group: np.ndarray | None = None, sequences: Mapping[str, tuple[int, np.ndarray]] | None = None,
                time: np.ndarray | None = None) -> Planted:
        """Rows and truth together; ``sequences`` are (the field they are of, its values [N, L]) by name."""
        fields = tuple(Field(name, "categorical", len(kept) + 1, side)
                       for name, kept, side in zip(self.names, self.kept, self.sides, strict=True))
        steps = {name: self.to_id[f][values] for name, (f, values) in (sequences or {}).items()}
        fields += tuple(Field(name, "sequence", fields[f].vocab, "user", fields[f].name, values.shape[1])
                        for name, (f, values) in (sequences or {}).items())
        sizes = {role: part.stop - part.start for role, part in self.parts.items()}
        schema = Schema(fields, objectives, sizes,
                        vocab_hash=hashlib.sha256(b"".join(k.tobytes() for k in self.kept)).hexdigest(),
                        roles_hash=hashlib.sha256(repr(sizes).encode()).hexdigest())
        roles = {role: in_memory(schema, self.ids[part], labels[part], None if group is None else group[part],
                                 {name: values[part] for name, values in steps.items()},
                                 None if time is None else time[part])
                 for role, part in self.parts.items()}
        return Planted(roles, truth, self.counts)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _zipf(values: int, exponent: float) -> np.ndarray:
    """Probabilities [values] proportional to ``rank ** -exponent``."""
    share = np.arange(1, values + 1, dtype=float) ** -exponent
    return share / share.sum()


# Number of values per categorical field, as in public display-advertising logs; about a million together.
DISPLAY_VOCABULARIES = (
    1166, 444, 155159, 111040, 244, 15, 9576, 507, 4, 37063, 4183, 194762, 2541, 21, 9395, 180256, 8, 3781, 1646, 4,
    190911, 14, 12, 54284, 71, 40753)
DISPLAY_NUMERIC = 13
DISPLAY_ROLES = {"train": 1.0, "valid": 0.1, "test": 0.1}


def display_log(seed: int, rows: int, vocabularies: Sequence[int] = DISPLAY_VOCABULARIES) -> Planted:
    """A display-advertising log: 26 fields with Zipf-distributed values and 13 numeric ones, for benchmarks.

    The logit adds an effect per value of every field, products of factors of five pairs among the first eight
    fields, and a weight per numeric value. Numeric fields have no buckets: models read their values.

    Args:
        seed: of everything drawn.
        rows: of ``train``; ``valid`` and ``test`` have a tenth each.
        vocabularies: values per categorical field, at least eight fields; one more id is out-of-vocabulary.

    Truth: nothing but ``probability``.
    """
    world = np.random.default_rng([seed, 0])
    effects = [world.normal(0, 0.25, v) for v in vocabularies]
    factors = [world.normal(0, 0.5, v) for v in vocabularies[:8]]
    weights = 0.2 * world.normal(size=DISPLAY_NUMERIC)
    shares = [np.cumsum(p / p.sum()) for p in (np.arange(1, v + 1) ** -1.05 for v in vocabularies)]
    sizes = {role: int(rows * share) for role, share in DISPLAY_ROLES.items()}
    schema = Schema(
        fields=(*(Field(f"c{i}", "categorical", v + 1) for i, v in enumerate(vocabularies)),
                *(Field(f"n{i}", "numeric", 0) for i in range(DISPLAY_NUMERIC))),
        objectives=(Objective("click"),), rows={**dict.fromkeys(ROLES, 0), **sizes},
        vocab_hash=f"display-{seed}-{len(vocabularies)}", roles_hash=f"display-{seed}-{rows}")
    roles: dict[str, Rows] = {}
    counts = np.zeros(schema.total_vocab, np.int64)
    probability: dict[str, np.ndarray] = {}
    for number, (role, n) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, 1, number])
        ids = np.stack([np.searchsorted(s, rng.random(n)).clip(max=len(s) - 1) for s in shares], 1).astype(np.int32)
        numeric = np.log1p(rng.gamma(1.0, 1.0, (n, DISPLAY_NUMERIC))).astype(np.float32)
        logit = -1.2 + sum(e[ids[:, i]] for i, e in enumerate(effects)) + (numeric - numeric.mean(0)) @ weights
        for a, b in ((0, 1), (2, 3), (4, 5), (6, 7), (2, 6)):
            logit += factors[a][ids[:, a]] * factors[b][ids[:, b]]
        probability[role] = 1 / (1 + np.exp(-logit))
        label = (rng.random(n) < probability[role]).astype(np.float32)
        zeros = np.zeros(n, np.int64)
        roles[role] = Rows.of(schema, ids, numeric, {}, label.reshape(n, 1), zeros.astype(np.int32), zeros, zeros)
        if role == "train":
            for i, field in enumerate(schema.id_fields):
                np.add.at(counts, schema.offsets[field.name] + ids[:, i], 1)
    return Planted(roles, {"probability": probability}, counts)
