"""One rank of an index that ``torchrun`` builds (`flows.stages.torchrun`): ``python -m flows.rank JOB.json``.

It speaks JSON lines on standard output (progress of rank 0, a failure of any); what libraries print goes to standard error.
When the process that started torchrun is gone, standard input ends, and so does this.
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

from flows.stage import INTERRUPTED, Events, message_of


def main() -> int:
    """Build this rank's part; the exit code is 1 only where starting the ranks again may help."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"), silent=False)
    os.dup2(2, 1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for place in (os.getcwd(), job["arguments"]["root"]):
        if place not in sys.path:
            sys.path.insert(0, place)
    import torch
    import torch.distributed as dist

    from lorif_core.ranks import RankLost

    rank, attempt = int(os.environ["LOCAL_RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # A meeting place of its own for each attempt: in torchrun's store ranks started again find addresses of the dead ones.
    place = f"file://{job['meeting']}/{attempt}"
    # gloo, as the ranks exchange words, no tensors
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    try:
        _fit(job["arguments"], Path(job["index"]), events.progress if rank == 0 else lambda text, done, total: None)
    except RankLost:
        traceback.print_exc()
        return 1
    except Exception as error:  # noqa: BLE001  whatever went wrong, the parent must hear of it
        traceback.print_exc()
        events.send(event="failed", message=message_of(error))
    dist.destroy_process_group()
    return 0


def _fit(arguments: dict[str, Any], index: Path, progress: Any) -> None:
    from flows.stages.indexed import indexed

    attributor, rows = indexed(arguments, progress)
    attributor.fit(rows.loader, index, rows.ids)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which would start this rank again
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
