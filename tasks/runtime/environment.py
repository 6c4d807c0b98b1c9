"""The embedded installation: SQLite, local executor, loopback only, everything under ``.airflow`` of the checkout.

It is a set of defaults for environment variables. A variable that is set already wins, so that Postgres, Celery,
Kubernetes or another address need no change of code (docs/cluster.md).
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def embedded(project: Path, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of Airflow and of what it starts: ``given``, and the defaults it leaves open.

    Creates ``.airflow`` and the secret that its processes share, readable by the owner only.
    """
    home = Path(given.get("AIRFLOW_HOME", project / ".airflow"))
    host = given.get("AIRFLOW__API__HOST", "127.0.0.1")
    port = int(given.get("AIRFLOW__API__PORT", "8080"))
    defaults = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": str(max(2, os.cpu_count() or 2)),
        "AIRFLOW__API__HOST": host,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://{host}:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(home / "jwt_secret"),
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": "86400",  # a stage may train for hours
        # Without a login only where nobody but this machine can connect.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(host in LOOPBACK),
        # Two installations on one machine differ in the port of their UI; these follow it.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(port + 713),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(port + 714),
        "CTRMODELS_REPORTS": str(home / "reports"),
        "CTRMODELS_REPORTS_URL": f"http://127.0.0.1:{port + 1}",  # served by `make ui`
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "False",
    }
    binaries = str(Path(sys.executable).parent)
    path = given.get("PATH", os.defpath)
    if binaries not in path.split(os.pathsep):
        path = os.pathsep.join([binaries, path])
    return {**defaults, **given, "PATH": path}


def pools() -> dict[str, dict[str, Any]]:
    """Airflow's pools: how many stages of a kind may run at once on one machine."""
    return {
        "git": {"slots": 1, "description": "tasks that write to the Git repository"},
        "spark": {"slots": 1, "description": "Spark stages; each takes every core"},
        "gpu": {"slots": 1, "description": "searches and trainings; each takes every core, or the first GPU"},
    }


def _secret(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # readable by the owner only
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
            os.link(partial, path)  # whole, or not at all; of several processes the first one's counts
        except FileExistsError:
            pass
        finally:
            Path(partial).unlink()
    return path.read_text()
