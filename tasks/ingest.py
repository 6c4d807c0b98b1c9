"""Stage ``ingest``: any log to typed parquet with labels, histories and roles.

Writes ``log/part-*.parquet``, one row per impression, in reading order. Columns: every field (categorical as
text, numeric as double, sequence as array of text), every objective (binary as 0/1, regression as double),
null where missing or unknown, and the system columns ``_row``, ``_role``, ``_day``, ``_time``, ``_group``,
``_position`` and ``_propensity``.
"""

from __future__ import annotations

from tasks import sources
from tasks.log.prepare import prepare
from tasks.log.summary import summarise
from tasks.runtime import spark
from tasks.runtime.stage import Stage, main
from tasks.sources import files


def run(stage: Stage) -> None:
    """Read the log that ``data`` describes, check it, and write it with its roles."""
    from pyspark.sql import functions as F

    data, partitions = stage.params.data, stage.params.ingest.partitions
    scratch = stage.scratch.resolve()
    with stage.timed("source"):
        described = sources.prepare(data, scratch, stage.out)
    with spark.session("ingest", partitions, files.size(described)) as session:
        with stage.timed("check"):
            log = files.read(session, described, scratch)
            prepared = prepare(log, data, partitions)
        with stage.timed("write"), spark.reading(log.where):
            # Equal runs of rows per file, in reading order, wherever the shuffles before have put them.
            part = F.floor(F.col("_row") * partitions / log.rows).cast("int")
            spark.write_parquet(prepared.repartitionById(partitions, part).sortWithinPartitions("_row"),
                                stage.out / "log")
        with stage.timed("summary"):
            summary = summarise(session.read.parquet(str(stage.out / "log")), data, log)
    stage.facts["rows"] = log.rows
    stage.metrics(summary.metrics)
    for figure in summary.figures:
        stage.figure(figure)


if __name__ == "__main__":
    main("ingest", run)
