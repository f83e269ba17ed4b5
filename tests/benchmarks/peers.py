"""CPU seconds of an index and its queries against LogIX and bergson, in one run, on one model and the same texts.

Each peer is installed into a virtual environment of its own below `--cache` (once; pip finds packages as this machine's
configuration says), and every measurement is a child process with one thread. Imports and reading the model are not timed,
the rows take turns. `ours, linear layers` attributes what the peers do: the linear layers of attention and MLP blocks.

`seconds`: user + system time of indexing all texts (curvature included, where a row has one) and of scoring all queries
against all of them; median, `least` and `most` of the repeats. `/ fastest peer`: median over that of the faster of the
two packages, each in its fastest row. `bytes`: what a run leaves on disk, a text.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.peer_runners.task import make_task
from tests.benchmarks.table import Row, show

ROOT = Path(__file__).parents[2]
RUNNERS = "tests.benchmarks.peer_runners"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"


@dataclass(frozen=True)
class Peer:
    """How to install a package: calls of pip, in order."""

    name: str
    pip: tuple[tuple[str, ...], ...]

    def python(self, cache: Path) -> Path:
        """The interpreter of its environment, made and filled where there is none yet."""
        folder = cache / self.name
        python, done = folder / "bin" / "python", folder / ".installed"
        wanted = repr((TORCH, self.pip))
        if not done.exists() or done.read_text() != wanted:
            print(f"installing {self.name} into {folder}", flush=True)
            venv.create(folder, clear=True, with_pip=True)
            for arguments in self.pip:
                subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)
            done.write_text(wanted)
        return python


LOGIX = Peer(
    "logix",
    (
        ("install", TORCH, "transformers>=5,<6", "numpy", "einops", "pyyaml", "tqdm"),
        # its wheel declares Python < 3.11, and runs on later ones
        ("install", "--no-deps", "--ignore-requires-python", "logix-ai==0.1.1"),
    ),
)
BERGSON = Peer(
    "bergson",
    (
        ("install", TORCH, "bergson==2.5.1"),
        # declared and not used; where they do not match the torch above, transformers fails to import
        ("uninstall", "--yes", "torchvision", "torchaudio"),
    ),
)
ROWS = {  # row: (package, None for this one; runner; variant)
    "ours, linear layers": (None, "ours", "linear layers"),
    "ours, all layers": (None, "ours", "all layers"),
    "LogIX, random projections": (LOGIX, "logix", "random"),
    "LogIX, pca projections": (LOGIX, "logix", "pca"),
    "bergson, no curvature": (BERGSON, "bergson", "dot product"),
    "bergson, autocorrelation": (BERGSON, "bergson", "autocorrelation"),
}


def run(python: Path, runner: str, task: Path, variant: str) -> dict[str, float]:
    """One measurement in a fresh process and folder.

    Raises:
        RuntimeError: the runner failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as out:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [str(python), "-m", f"{RUNNERS}.{runner}", str(task), out, variant]
        environment = os.environ | threads | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(runs: list[dict[str, float]], texts: int) -> dict[str, float | int | str | None]:
    """Of one row."""
    totals = [one["index"] + one["queries"] for one in runs]
    return {
        "seconds": statistics.median(totals),
        "least": min(totals),
        "most": max(totals),
        "index": statistics.median(one["index"] for one in runs),
        "queries": statistics.median(one["queries"] for one in runs),
        "bytes": runs[-1]["bytes"] / texts,
    }


def main(argv: list[str] | None = None) -> list[Row]:
    """Print each run as it ends, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "peers", help="the environments (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for peers.json, every measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    args = parser.parse_args(argv)
    chosen = {name: row for name, row in ROWS.items() if args.only in name}
    pythons = {name: peer.python(args.cache) if peer else Path(sys.executable) for name, (peer, _, _) in chosen.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder)
        parameters = make_task(task, args.texts, args.queries, args.tokens)
        for _ in range(args.repeats):
            for name, (_, runner, variant) in chosen.items():
                runs[name].append(run(pythons[name], runner, task, variant))
                print(f"{name}:", *(f"{key} {value:.4g}" for key, value in runs[name][-1].items()), flush=True)
    found = {name: figures(measured, args.texts) for name, measured in runs.items()}
    peers = [float(found[name]["seconds"] or 0) for name, (peer, _, _) in chosen.items() if peer]
    for row in found.values():
        row["/ fastest peer"] = float(row["seconds"] or 0) / min(peers) if peers else None
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "peers.json").write_text(json.dumps(runs, indent=1) + "\n")
    title = (
        f"{args.texts} + {args.queries} texts of {args.tokens} tokens, {parameters} parameters: CPU seconds, one thread"
    )
    return show(title, [Row(name, row) for name, row in found.items()])


if __name__ == "__main__":
    main()
