"""What row-wise updates cost in AUC: lazy Adam and row-wise Adagrad against Adam on whole tables, over seeds.

    python -m benchmarks.updates --encoded outputs/encode --objective like

Every optimiser trains the same DeepFM on ``train`` and ``arch`` with the same seeds, stopping on ``valid``.
"""

from __future__ import annotations

import argparse

from benchmarks.compare import Study
from ctrmodels.training.optimisers import TABLE_OPTIMISERS

RATES = {"adam": 1.0, "lazy_adam": 1.0, "rowwise_adagrad": 20.0}


def main() -> None:
    """Train, print mean and standard deviation over the seeds."""
    study = Study.parse(argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    for name in TABLE_OPTIMISERS:
        study.run(name, table_optimiser=name, table_learning_rate=RATES[name] * study.common["learning_rate"])


if __name__ == "__main__":
    main()
