"""The work of stages that several processes can share, by its name in a job."""

from __future__ import annotations

from flows.stages import index_steps, influence

WORKS = {"index": index_steps.STEPS, "score": influence.STEPS}
