"""How often and how long: what every task of a DAG has in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

RETRY_POLICY = ExceptionRetryPolicy(rules=[RetryRule(
    exception=["ctrmodels.errors.InputError", "tasks.runtime.failures.StageRefused"],
    action=RetryAction.FAIL,
    reason="what was given has to be mended first; another attempt would fail too",
)])

DEFAULTS: dict[str, Any] = {
    "owner": "ctrmodels",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": RETRY_POLICY,
}

# Tasks that read or write the Git repository are short and run one at a time.
GIT: dict[str, Any] = {"queue": "default", "pool": "git", "execution_timeout": timedelta(minutes=15)}
