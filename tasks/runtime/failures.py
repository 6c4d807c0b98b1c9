"""How an attempt of a stage can fail, seen from outside. Imports nothing: Airflow loads it with every DAG."""


class StageFailed(RuntimeError):
    """DVC could not run the stage; carries its last lines. Another attempt may succeed."""


class StageRefused(RuntimeError):
    """The stage does not accept what the user gave; carries its one line. Another attempt would fail too."""
