"""Every command and snippet of the README, run as a new user would: in an empty folder, with a table of their own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from sklearn.datasets import load_wine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
STEPS = [
    step
    for kind, text in BLOCKS
    for step in (text.strip().splitlines() if kind == "bash" else [f"python\n{text}"] if kind == "python" else [])
]

pytestmark = pytest.mark.readme


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the two tables and the list of ids the README speaks of."""
    path = tmp_path_factory.mktemp("user")
    wine = load_wine(as_frame=True)
    pl.from_pandas(wine.data).with_columns(quality=pl.Series(wine.target)).write_csv(path / "examples.csv")
    texts = [
        (f"a {word} film, number {i}", label) for i in range(60) for word, label in (("fine", "good"), ("dull", "bad"))
    ]
    pl.DataFrame(texts, schema=["review", "label"], orient="row").write_csv(path / "reviews.csv")
    (path / "ids.txt").write_text("person-03/award\nperson-03/book\n", encoding="utf-8")
    return path


def run(command: list[str], folder: Path) -> str:
    """Standard output of a command in `folder`; its error output in the failure."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_first_step_is_the_demo_and_it_runs_what_is_tested_here() -> None:
    assert STEPS[0] == "make demo" and len(STEPS) > 6
    recipe = (
        run(["make", "--dry-run", "--no-print-directory", "--assume-old=pyproject.toml", "demo"], ROOT)
        .strip()
        .splitlines()
    )
    assert recipe[-1].endswith("curate clean --config configs/clean_digits.yaml")
    assert "curate clean --config clean_digits" in STEPS


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: step.splitlines()[0])
def test_step(step: str, folder: Path) -> None:
    """In the order of the document: later steps use what earlier ones left."""
    language, _, code = step.partition("\n")
    run([sys.executable, "-c", code] if language == "python" else shlex.split(step), folder)
