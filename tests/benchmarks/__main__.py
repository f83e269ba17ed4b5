"""`python -m tests.benchmarks [--data DIR]`: every benchmark in turn; those that need data only where it is given."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks import (
    codecs,
    curvature_updates,
    damping,
    fit_time,
    guard_weights,
    label_errors,
    lds,
    peers,
    scale,
    store_checks,
)


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds the folders data/ and truth/")
    args = parser.parse_args()
    fit_time.main([])
    peers.main([])
    store_checks.main([])
    scale.main([])
    curvature_updates.main([])
    if args.data:
        lds.main(["--data", str(args.data)])
        codecs.main(["--data", str(args.data)])
        damping.main(["--data", str(args.data)])
    files = ["--data", str(args.data / "data")] if args.data else []
    label_errors.main(files)
    guard_weights.main(files)


if __name__ == "__main__":
    main()
