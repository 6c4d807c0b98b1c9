"""Whether a log larger than the memory that a process may use trains through, and what streaming costs.

    python -m benchmarks.streaming --gib 10.4 --limit-mb 2048

A display log of a million rows is laid out several times in a row until it has the asked size. Each training runs
in a process whose data segment the system limits, and reads the log through a buffer of 256 MiB; beside it the
million rows are trained on from memory. One epoch each; throughput and peak memory are printed by size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS = 1_000_000
BUFFER_MB = 256
BATCH = 4096


def tile(small: Path, large: Path, copies: int) -> int:
    """Write ``copies`` of the log ``small`` as one; returns its bytes."""
    total = 0
    (large / "train").mkdir(parents=True)
    schema = json.loads((small / "schema.json").read_text())
    schema["rows"]["train"] *= copies
    (large / "schema.json").write_text(json.dumps(schema))
    for source in sorted((small / "train").glob("*.npy")):
        column = np.load(source, mmap_mode="r")
        with (large / "train" / source.name).open("wb") as stream:
            np.lib.format.write_array_header_2_0(stream, {  # type: ignore[no-untyped-call]
                "descr": np.lib.format.dtype_to_descr(column.dtype), "fortran_order": False,
                "shape": (len(column) * copies, *column.shape[1:])})
            for _ in range(copies):
                column.tofile(stream)
            total += stream.tell()
    return total


def train(log: Path, limit_mb: int, buffer_mb: int) -> None:
    """One epoch in this process; prints its throughput and peak memory."""
    import torch

    from ctrmodels.archspec import ArchSpec
    from ctrmodels.data import Dataset
    from ctrmodels.training import TrainConfig
    from ctrmodels.training.trainer import Trainer
    from ctrmodels.zoo import DeepFM

    if limit_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_mb << 20, limit_mb << 20))
    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = Dataset(log, ("train",))
    model = DeepFM(data.schema, ArchSpec.dense(data.schema, 16), "click", (64, 32))
    trainer = Trainer(model, TrainConfig(batch_size=BATCH, table_optimiser="rowwise_adagrad", table_learning_rate=0.02,
                                         precision="auto", device="cpu", buffer_mb=buffer_mb))
    rows = data.role("train")
    loader = trainer.loader(rows)
    began = time.perf_counter()
    for _ in trainer.epoch(loader, 0):
        pass
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": len(rows), "streamed": loader.streams, "samples_per_s": round(len(rows) / seconds),
                      "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def main() -> None:
    """Lay the logs out, train on each, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=10.4, help="size of the largest log")
    parser.add_argument("--limit-mb", type=int, default=2048, help="data segment that a streaming process may have")
    parser.add_argument("--train", nargs=3, metavar=("LOG", "LIMIT_MB", "BUFFER_MB"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(Path(arguments.train[0]), int(arguments.train[1]), int(arguments.train[2]))
        return
    from ctrmodels.data.planted import display_log

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        display_log(0, ROWS).save(small)
        size = sum(f.stat().st_size for f in (small / "train").iterdir())
        print("log GiB   rows M   from     limit MiB   k samples/s   peak MiB")
        for copies in (1, 4, max(5, round(arguments.gib * 2**30 / size))):
            large = Path(folder) / f"large-{copies}"
            gib = tile(small, large, copies) / 2**30
            for limit, buffer in ((0, 2048), (arguments.limit_mb, BUFFER_MB)) if copies == 1 else (
                    (arguments.limit_mb, BUFFER_MB),):
                done = subprocess.run([sys.executable, "-m", "benchmarks.streaming", "--train", str(large), str(limit),
                                       str(buffer)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
                found = json.loads(done.stdout.strip().splitlines()[-1])
                print(f"{gib:7.2f} {found['rows'] / 1e6:8.1f}   {'disk' if found['streamed'] else 'memory':<8}"
                      f"{limit or '-':>9} {found['samples_per_s'] / 1000:13.1f} {found['peak_mb']:10}", flush=True)


if __name__ == "__main__":
    main()
