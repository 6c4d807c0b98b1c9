"""What a search costs, in units of one plain training of a DeepFM on the same rows.

    python -m benchmarks.search_cost --rows 1000000

Plain trainings and searches take turns in one process, each over the same number of epochs from a fresh network; the
search's own training is part of it, its retraining is not. The log is the benchmarks' display log; searches of
interactions work on the DeepFM with gated ones. AIM trains once per order, and AutoFeature once per genome, here two
random ones: their figure is the mean of these. With ``--retrain`` the figure is of the whole: all orders, and a
retraining of what was found over as many epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import display_log
from ctrmodels.search import (
    AIM,
    AIMEDS,
    NIS,
    PEP,
    AutoDim,
    AutoEmb,
    AutoFeature,
    AutoFIS,
    AutoGroup,
    Host,
    SearchMethod,
    SearchRows,
)
from ctrmodels.training import TrainConfig
from ctrmodels.training.trainer import Trainer, seed_everything

WIDTH = 16


def methods(epochs: int) -> dict[str, SearchMethod]:
    """Every search over ``epochs``, with targets and thresholds that it cannot end early by."""
    pep, autodim = PEP(targets=(1e-6,), epochs=epochs), AutoDim(epochs=epochs)
    return {
        "pep": pep,
        "autodim, shared, every 10": autodim,
        "autodim, shared, second order, every 10": replace(autodim, order="second"),
        "autodim, separate, every 10": replace(autodim, layout="separate", projection="linear"),
        "aim_eds, field_dimension": AIMEDS(epochs=epochs, target_threshold=0.1),
        "aim_eds, value_dimension": AIMEDS(epochs=epochs, target_threshold=0.1, granularity="value_dimension"),
        "nis, multi": NIS(epochs=epochs, budget=0.9),
        "autoemb": AutoEmb(epochs=epochs),
        "autofis, pairs": AutoFIS(epochs=epochs),
        "autofis, pairs, gates on arch": AutoFIS(epochs=epochs, gates_on="arch"),
        "autofis, pairs and triples": AutoFIS(epochs=epochs, orders=(2, 3)),
        "aim, pairs": AIM(epochs=epochs, order=2, dimensions=None),
        "aim, pairs and triples": AIM(epochs=epochs, order=3, dimensions=None),
        "autogroup": AutoGroup(epochs=epochs),
        "autofeature, a genome": AutoFeature(epochs=epochs, evaluations=2, pare=None),
    }


def trainings(method: SearchMethod) -> int:
    """How often a search trains a network from scratch."""
    if isinstance(method, AutoFeature):
        return method.evaluations
    return method.order - 1 if isinstance(method, AIM) else 1


def plain(rows: SearchRows, host: Host, epochs: int, spec: ArchSpec | None = None) -> None:
    """One training of the unsearched host, or of ``spec`` in it, on all rows that a search is given, as controls and
    retrainings have it, without the judging after every epoch."""
    seed_everything(0)
    spec = ArchSpec.dense(rows.schema, host.dim) if spec is None else host.complete(spec, rows.schema)
    trainer = Trainer(host.build(rows.schema, spec), host.train)
    loader = trainer.loader(rows.both())
    for epoch in range(epochs):
        for _ in trainer.epoch(loader, epoch):
            pass


def search(method: SearchMethod, rows: SearchRows, host: Host, retrained: int = 0) -> None:
    """The search, and ``retrained`` epochs on each spec that it found."""
    if method.part == "interaction":
        host = replace(host, model="autodeepfm")
    specs: list[ArchSpec] = []
    try:
        specs = list(method.search(rows, host, 0).specs.values())
    except RuntimeError as error:
        if "did not reach the targets" not in str(error):
            raise
    if retrained:
        for spec in specs:
            plain(rows, host, retrained, spec)


def seconds(work: Callable[[], None]) -> float:
    """Wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print one JSON line per net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--hidden", nargs="+", default=["64-32", "400-400-400"])
    parser.add_argument("--only", nargs="*", help="how the names of methods begin, all by default")
    parser.add_argument("--retrain", action="store_true", help="with the retraining of what the search found")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    log = display_log(0, arguments.rows)
    rows = SearchRows(log.roles["train"], log.roles["valid"])
    for hidden in arguments.hidden:
        host = Host("click", model="deepfm", dim=WIDTH, hidden=tuple(map(int, hidden.split("-"))), train=TrainConfig(
            batch_size=arguments.batch, table_optimiser="rowwise_adagrad", table_learning_rate=0.02,
            precision=arguments.precision, buffer_mb=1 << 20))
        chosen = {name: m for name, m in methods(arguments.epochs).items()
                  if not arguments.only or any(name.startswith(key) for key in arguments.only)}
        ratios: dict[str, list[float]] = {name: [] for name in chosen}
        plain(rows, host, 1)  # compiles, and touches memory
        for _ in range(arguments.rounds):
            base = seconds(partial(plain, rows, host, arguments.epochs))
            for name, method in chosen.items():
                work = partial(search, method, rows, host, arguments.epochs if arguments.retrain else 0)
                ratios[name].append(seconds(work) / base / (1 if arguments.retrain else trainings(method)))
        print(json.dumps({"hidden": hidden, "batch": arguments.batch, "precision": arguments.precision,
                          "epochs": arguments.epochs, "retrained": arguments.retrain,
                          "ratios": {name: round(statistics.median(r), 2) for name, r in ratios.items()}}), flush=True)


if __name__ == "__main__":
    main()
