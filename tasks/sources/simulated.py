"""A generated log whose truth is known; the truth goes to ``truth/`` beside the ingested log."""

from __future__ import annotations

import shutil
from pathlib import Path

from ctrmodels.data.simulator import Simulator, SimulatorConfig
from tasks.config import Data, Files


def prepare(data: Data, scratch: Path, out: Path) -> Files:
    """Generate the log into ``scratch`` and its truth into ``out/truth``.

    Raises:
        InputError: the parameters do not fit together.
    """
    folder = scratch / "simulated"
    shutil.rmtree(folder, ignore_errors=True)  # a killed attempt may have left one that is not whole
    config = SimulatorConfig(**data.simulated.model_dump(), log_propensity=data.propensity is not None)
    Simulator(config).write(folder, out / "truth")
    return Files(path=str(folder))
