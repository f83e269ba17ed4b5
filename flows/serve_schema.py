"""The configuration of `curate serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from flows.schema import Section


class ServeConfig(Section):
    """Configuration of `curate serve`: one clean or select job on a schedule."""

    clean: Path | None = Field(default=None, description="The configuration file of the clean job to run.")
    select: Path | None = Field(
        default=None, description="That of the select job to run; of a pool that grew only the new rows are indexed."
    )
    cron: str = Field(description='When, as a cron line such as "0 3 * * *" (minute hour day month weekday).')
    timezone: str = Field(default="UTC", description="Time zone of the cron line, as in Europe/Berlin.")
    name: str | None = Field(
        default=None, min_length=1, description="Name of the deployment in Prefect; empty: clean or select."
    )
    port: int = Field(
        default=4200,
        ge=1,
        le=65535,
        description="Port of Prefect's server, which is started when none runs there and PREFECT_API_URL is not set.",
    )

    @model_validator(mode="after")
    def _one_job(self) -> Self:
        given = [name for name in ("clean", "select") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected the file of one job, clean or select; got {' and '.join(given) or 'neither'}")
        return self
