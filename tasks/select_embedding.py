"""Choose the embedding: best valid metric within the budget, ties to the cheaper."""

from __future__ import annotations

from tasks.runtime.stage import Stage, main
from tasks.searches import select


def run(stage: Stage) -> None:
    """The stage."""
    select(stage, "search_embedding")


if __name__ == "__main__":
    main("select_embedding", run)
