"""What earlier runs of select over the same growing pool left: their model and indexes, to be kept and added to.

``WORKSPACE/pools/NAME-KEY/`` has the pool's states in ``states.json``, oldest first, and the rows of each. A state is usable
while its stages are in the workspace; a run over a pool that grew takes the latest whose rows are all still there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from flows.files import copy_atomic, digest_of, read_json, write_json
from flows.folder import INPUTS
from flows.runner import Finished, Runner

STATES = "states.json"


@dataclass(frozen=True)
class State:
    """A pool as an earlier run indexed it.

    Attributes:
        model: that scored; None: the one that the configuration loads.
        indexes: of its rows, one for each state of the model that scores.
        same: whether it has exactly the rows of this run, and not only some of them.
        origins: digests of the indexes that these were grown from; None: they were built at once.
    """

    model: Finished | None
    indexes: list[Finished]
    same: bool
    origins: list[str | None]


class Pools:
    """The states of one pool.

    Args:
        workspace: the workspace folder.
        name: of the job.
        of: everything that must be alike for an index to be added to: model, training, options of the index.
        say: told why a state cannot be used.
    """

    def __init__(self, workspace: Path, name: str, of: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.folder = workspace / "pools" / f"{name}-{digest_of(dict(of))[:16]}"
        self._say = say

    def find(self, data_digest: str, rows: Path, runner: Runner) -> State | None:
        """The state of these rows, else the latest whose rows are all among them; None where there is none.

        Args:
            data_digest: of the data of this run.
            rows: its rows: ``example_id`` and ``content``.
            runner: finds the stages.
        """
        states = (read_json(self.folder / STATES) or {"states": []})["states"]
        here = [state for state in reversed(states) if state["data"] == data_digest]
        for state in here or reversed(states):
            if not here and not self._is_part(state, rows):
                continue
            model = runner.find("train", state["model"]) if state["model"] is not None else None
            found = [runner.find(one["stage"], one["inputs"]) for one in state["indexes"]]
            indexes = [index for index in found if index is not None]
            if len(indexes) < len(found) or (model is None and state["model"] is not None):
                self._say(
                    "the index of an earlier state of this pool is not in the workspace any more; it is not added to"
                )
                continue
            origins = state["origins"] if here else [index.digest for index in indexes]
            return State(model, indexes, bool(here), origins)
        return None

    def add(
        self,
        data_digest: str,
        rows: Path,
        model: Finished | None,
        indexes: Sequence[Finished],
        origins: Sequence[str | None],
    ) -> None:
        """Note what this run made; nothing where it is noted.

        Args:
            data_digest: of its data.
            rows: as for :meth:`find`.
            model: that scored; None: one that the configuration loads.
            indexes: of its rows.
            origins: digests of the indexes they were grown from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock(self.folder)):
            states = (read_json(self.folder / STATES) or {"states": []})["states"]
            kept = self.folder / f"rows-{data_digest[:16]}.parquet"
            state = {
                "data": data_digest,
                "rows": kept.name,
                "model": None if model is None else read_json(model.folder / INPUTS),
                "indexes": [{"stage": x.stage, "inputs": read_json(x.folder / INPUTS)} for x in indexes],
                "origins": list(origins),
                "stages": [x.folder.name for x in (*indexes, *([] if model is None else [model]))],
            }
            if state in states:
                return
            copy_atomic(rows, kept)
            write_json(
                self.folder / STATES, {"states": [*(one for one in states if one["data"] != data_digest), state]}
            )

    def _is_part(self, state: Mapping[str, Any], rows: Path) -> bool:
        """Whether every row of a state is there, as it was."""
        file = self.folder / state["rows"]
        if not file.is_file():
            return False
        before, now = pl.read_parquet(file), pl.read_parquet(rows)
        if before.schema != now.schema:
            return False
        return before.join(now, on=["example_id", "content"], how="anti").is_empty()


def prune(workspace: Path, gone: Collection[str], *, dry_run: bool) -> tuple[int, int]:
    """Forget the states of pools of which a stage is not in the workspace any more: no run could add to their indexes.

    Args:
        workspace: the workspace folder, in which nothing else is at work.
        gone: names of stages that count as not there.
        dry_run: leave everything as it is.

    Returns:
        How many states, and how many bytes of their rows.
    """

    def usable(state: Mapping[str, Any]) -> bool:
        names = state.get("stages", [])  # none: of an earlier version, which nothing finds any more
        return bool(names) and all(name not in gone and (workspace / "stages" / name).is_dir() for name in names)

    forgotten = freed = 0
    for folder in sorted(path for path in (workspace / "pools").glob("*") if path.is_dir()):
        file = folder / STATES  # not there: the first run was killed before it wrote it
        states = (read_json(file) or {"states": []})["states"]
        kept = [state for state in states if usable(state)]
        rows = {state["rows"] for state in kept}
        unused = [path for path in folder.glob("rows-*.parquet") if path.name not in rows]
        forgotten += len(states) - len(kept)
        freed += sum(path.stat().st_size for path in unused)
        if dry_run:
            continue
        if kept:
            if len(kept) < len(states):
                write_json(file, {"states": kept})
            for path in unused:  # of states now forgotten, or that a killed run left
                path.unlink()
        else:
            shutil.rmtree(folder)
            _lock(folder).unlink(missing_ok=True)
    return forgotten, freed


def _lock(folder: Path) -> Path:
    """Beside the folder, whose name may hold dots."""
    return folder.with_name(f"{folder.name}.lock")
