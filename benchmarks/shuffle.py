"""What shuffling by blocks costs in AUC: a log streamed through a small buffer against one shuffled as a whole.

    python -m benchmarks.shuffle --encoded outputs/encode --objective like

The rows are first put in the worst order there is, sorted by the id of a field, so that neighbours are alike. A window
holds a share of the log, in random blocks of 8,192 rows; a single block at a time is the least that there is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.compare import Study
from ctrmodels.data import Rows
from ctrmodels.data.dataset import Columns
from ctrmodels.data.loader import row_bytes

SHARES = (0.5, 0.2, 0.1)


def sorted_by(rows: Rows, field: int) -> Rows:
    """The same rows, sorted by the id of id field ``field``."""
    whole = Columns.join(rows.parts)
    order = np.argsort(whole.ids[:, field], kind="stable")
    columns: dict[str, Any] = {k: np.asarray(v)[order] for k, v in vars(whole).items() if k != "sequences"}
    return Rows(rows.schema, [Columns(**columns, sequences={k: v[order] for k, v in whole.sequences.items()})])


def main() -> None:
    """Train by each order, print mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--field", type=int, default=0, help="position of the id field to sort the rows by")
    study = Study.parse(parser)
    study = replace(study, train=sorted_by(study.train, parser.parse_args().field))
    study.run("shuffled as a whole")
    size = row_bytes(study.train) * len(study.train) / 2**20
    for share in SHARES:
        study.run(f"windows of {share:.0%}", buffer_mb=round(2 * share * size))  # the buffer holds two windows
    study.run("single blocks", buffer_mb=0)


if __name__ == "__main__":
    main()
