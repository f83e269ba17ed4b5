"""Flows: the command line, the stages as child processes, the Prefect flows and the MLflow records."""

__version__ = "0.1.0"
