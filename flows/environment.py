"""Environment variables that Prefect, MLflow and the maths libraries read; a value the user has set always wins."""

from __future__ import annotations

import os

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # "1" does not stop MLflow
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # seven take minutes to say that a server is not there
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # 20 s on a loaded machine, 20 s is the default limit
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


def prepare() -> None:
    """Set the defaults of this process; call it before prefect or mlflow is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def threads_default() -> int:
    """Threads for one stage: the cores this process may use, less one for the parent and the next stage's start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, cores - 1)


def child_environment() -> dict[str, str]:
    """The environment of a stage's process: the parent's, bounded maths threads, unbuffered utf-8 output."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, str(threads_default()))
    environment.setdefault("PYTHONUTF8", "1")
    return environment
