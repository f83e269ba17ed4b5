"""One of the processes that share a stage's work (`flows.stages.crew`).

``python -m flows.member JOB.json`` is a rank of ``torchrun`` and does all steps, the others beside it;
``python -m flows.member JOB.json STEP WORKER`` does one worker's share of one step, for a task on a Ray cluster.

It speaks JSON lines on standard output (progress of the first worker, a failure of any); what libraries print goes to
standard error. When the process that started it is gone, standard input ends, and so does this.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from flows.stage import INTERRUPTED, Events, keep_log, message_of


def main() -> int:
    """Do this process's share; the exit code is 1 only where starting it again may help."""
    file, *one = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(not one,), daemon=True).start()
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"), silent=False)
    os.dup2(2, 1)
    keep_log()
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    for place in (job["here"], job["arguments"]["root"]):
        if place not in sys.path:
            sys.path.insert(0, place)
    from lorif_core.ranks import RankLost

    try:
        _step(job, int(one[0]), int(one[1]), events) if one else _all_steps(job, events)
    except RankLost:
        traceback.print_exc()
        return 1
    except Exception as error:  # noqa: BLE001  whatever went wrong, the parent must hear of it
        traceback.print_exc()
        events.send(event="failed", message=message_of(error))
    return 0


def _all_steps(job: dict[str, Any], events: Events) -> None:
    """Every step, as one rank of torchrun."""
    import torch
    import torch.distributed as dist

    from flows.stages.works import WORKS
    from lorif_core.ranks import on_all_ranks

    rank, attempt = int(os.environ["LOCAL_RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # A meeting place of its own for each attempt: in torchrun's store ranks started again find addresses of the dead ones.
    place = f"file://{job['aside']}/{attempt}"
    # gloo, as the ranks exchange words, no tensors
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=job["workers"])
    for number, step in enumerate(WORKS[job["work"]]):
        if step.by_all or rank == 0:
            on_all_ranks(lambda number=number: _step(job, number, rank, events))  # type: ignore[misc]
        else:
            on_all_ranks(lambda: None)
    dist.destroy_process_group()


def _step(job: dict[str, Any], number: int, worker: int, events: Events) -> None:
    from flows.stages.steps import Share
    from flows.stages.works import WORKS

    progress = events.progress if worker == 0 else lambda text, done, total: None
    share = Share(job["arguments"], Path(job["folder"]), worker, job["workers"], progress)
    WORKS[job["work"]][number].run(share)


def _end_with_parent(under_torchrun: bool) -> None:
    while os.read(0, 1):
        pass
    if under_torchrun:
        os.kill(os.getppid(), signal.SIGTERM)  # it would start this rank again
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
