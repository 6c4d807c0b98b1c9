"""AutoML for click-through-rate and multi-objective ranking models: the library part.

Usable alone: nothing in here imports Airflow, DVC, W&B, Spark or Great Expectations.
"""

__version__ = "0.1.0"
