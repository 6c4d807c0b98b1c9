"""Choose the interactions and merge them with the chosen embedding into the architecture to retrain."""

from __future__ import annotations

from ctrmodels.archspec import ArchSpec
from tasks.runtime.stage import Stage, main
from tasks.searches import select


def run(stage: Stage) -> None:
    """The stage."""
    select(stage, "search_interaction", ArchSpec.load(stage.input("select_embedding") / "spec"))


if __name__ == "__main__":
    main("select_interaction", run)
