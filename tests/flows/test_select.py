"""A whole run of select on a table of texts that grows: real stages, a real Prefect server and a real MLflow database."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from mlflow import MlflowClient
from torch.nn.functional import cross_entropy

from curation.data import build_data
from curation.models import TextClassifier
from flows.cli import main
from flows.files import digest_file
from flows.modelling import Chosen

ROOT = Path(__file__).parents[2]
WORDS = {0: ["dull", "grey", "broken", "slow", "sad", "poor"], 1: ["fine", "bright", "whole", "quick", "glad", "rich"]}
CONFIG = """
data:
  class_path: TableData
  init_args: {path: texts.csv, label: label, id: id, text: text, split: split, source: source, batch_size: 16}
target:
  where: {column: source, values: [shop]}
  examples: 8
  group_by: label
budget: {rows: 20}
warmup: 0.5
train: {max_epochs: 2}
model: {init_args: {schedule: cosine}}
index: {layers: [head], projection: identity, storage: dense, bits: 32}
scores: {adam: true, checkpoints: 2, layer_weights: {"h*": 2}}
controls: [random]
compare: {seeds: 2, steps: 6}
report: {rows: 3, examples: 2}
"""

pytestmark = pytest.mark.usefixtures("prefect_server", "one_stage_process")


def table(rows: int, seed: int) -> pl.DataFrame:
    """Texts of two sources, of the shop's a third for validation."""
    draw = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        label, source = int(draw.integers(2)), ("shop", "news")[int(draw.integers(2))]
        words = [
            *draw.choice(WORDS[label], 4),
            *draw.choice([f"{source}{number}" for number in range(40)], 5 + row % 3),
        ]
        split = "validation" if source == "shop" and draw.random() < 1 / 3 else "train"
        made.append({"id": f"{seed}-{row}", "text": " ".join(words), "label": label, "split": split, "source": source})
    return pl.DataFrame(made)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own: tests of clean look for the only run and the only index in theirs."""
    return tmp_path_factory.mktemp("select")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, and a table with a copy of a target row and of a pool row in the pool."""
    folder = tmp_path_factory.mktemp("select")
    rows = table(140, 0)
    like = rows.filter(split="validation").head(1).with_columns(id=pl.lit("copied target"), split=pl.lit("train"))
    twice = rows.filter(split="train").head(1).with_columns(id=pl.lit("said again"))
    pl.concat([rows, like, twice]).write_csv(folder / "texts.csv")
    (folder / "texts.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def curate(folder: Path, workspace: Path) -> Callable[..., int]:
    def run(*tokens: str) -> int:
        return main(["select", "--config", str(folder / "texts.yaml"), "--workspace", str(workspace), *tokens])

    return run


@pytest.fixture(scope="module")
def first(curate: Callable[..., int], workspace: Path) -> dict[str, Any]:
    """The summary of the first run, as it was when it ended."""
    assert curate() == 0
    (run,) = (workspace / "runs").glob("texts-*")
    return json.loads((run / "summary.json").read_text())


def test_the_summary_has_the_promised_keys(first: dict[str, Any]) -> None:
    assert first["status"] == "finished" and first["strategy"] == "top_k"
    assert first["n_selected"] == 20 < first["n_pool"] and first["n_target"] == 8
    assert first["n_excluded"] == 2 and first["excluded"] == {"target rows": 1, "duplicates": 1}
    assert 0 < first["n_harmful"] < first["n_pool"] and -1 <= first["bias"]["length"] <= 1
    assert list(first["target_accuracy"]) == ["top_k", "random"]
    for found in first["target_accuracy"].values():
        assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1 and list(found["by_seed"]) == ["1", "2"]
    assert list(first["target_loss"]) == ["top_k", "random"]
    for found in first["target_loss"].values():  # nats, of what the accuracy is of
        assert 0 <= found["low"] <= found["mean"] <= found["high"] and list(found["by_seed"]) == ["1", "2"]
    assert list(first["target_advantage"]) == ["random"]
    assert first["steps"] == 12 and first["index"]["grown_from"] is None
    assert {"data", "target", "selection", "run", "code", "index"} <= set(first["digests"])
    assert first["seeds"]["fine_tune"] == [1, 2]


def test_the_tables_agree_with_the_summary(first: dict[str, Any], folder: Path, workspace: Path) -> None:
    selected, excluded, scores = (pl.read_parquet(first["files"][name]) for name in ("selected", "excluded", "scores"))
    assert selected["rank"].to_list() == list(range(1, 21)) and selected["weight"].to_list() == [1.0] * 20
    assert set(selected.columns) == {"example_id", "rank", "score", "weight", "reason", "strategy"}
    assert set(excluded["example_id"]) == {"copied target", "said again"}
    rows = pl.read_csv(folder / "texts.csv")
    own = pl.read_parquet(first["files"]["selected_rows"])
    assert own.equals(selected.select(id="example_id").join(rows, on="id", maintain_order="left").select(rows.columns))
    kept = {path.name for path in (workspace / "mlflow-artifacts").rglob("*.parquet")}
    assert "selected.parquet" in kept and "selected_rows.parquet" not in kept, "whole rows of the user's"
    target = rows.filter(split="validation")["id"][0]
    assert excluded.filter(example_id="copied target")["like"].to_list() == [target]
    assert not set(excluded["example_id"]) & set(selected["example_id"])
    allowed = scores.filter(~pl.col("example_id").is_in(excluded["example_id"].implode()))
    best = allowed.sort("score", descending=True, maintain_order=True).head(20)
    assert selected["example_id"].to_list() == best["example_id"].to_list()
    assert {"score", "mean", "random-1", "random-2", "length"} <= set(scores.columns)


def test_scores_are_the_sum_over_checkpoints_of_what_adam_would_do(
    first: dict[str, Any], workspace: Path, folder: Path
) -> None:
    """LESS by autograd in float64: lr <D g_target, g_row> of the last layer, D = 1 / (sqrt(v) + eps) of Adam at that time."""
    data = build_data("curation.data.TableData", yaml.safe_load(CONFIG)["data"]["init_args"], folder)
    (trained,) = (workspace / "stages").glob("train-*/epoch-0001.ckpt")
    rows = pl.read_csv(folder / "texts.csv").with_row_index("row")
    held = rows.filter(split="validation", source="shop").with_row_index("place")
    order = sorted(held["id"], key=lambda x: hashlib.blake2b(f"0/{x}".encode(), digest_size=8).digest())[:8]
    choosing = held.filter(pl.col("id").is_in(order))
    places = rows.filter(split="validation").with_row_index("at").filter(pl.col("id").is_in(order))["at"].to_list()
    total: Any = 0.0
    rates = []
    for number, epoch in enumerate((1, 2)):
        state = torch.load(trained.with_name(f"epoch-000{epoch}.ckpt"), weights_only=True)
        rates.append(state["learning_rate"])
        model = TextClassifier(num_classes=2, schedule="cosine")
        model.load_state_dict(state["state_dict"])
        model.double()
        optimizer = state["optimizer_states"][0]
        names = [name for name, _ in model.named_parameters()]
        moments = {name: optimizer["state"][place] for place, name in enumerate(names)}
        roots = [
            (moments[f"head.{x}"]["exp_avg_sq"].double() / (1 - 0.999 ** float(moments[f"head.{x}"]["step"]))).sqrt()
            + 1e-8
            for x in ("weight", "bias")
        ]

        def gradients(some: Any, model: TextClassifier = model) -> torch.Tensor:
            found = []
            for ids, code in some:
                loss = cross_entropy(model(ids[None]), torch.tensor([int(code)]))
                parts = torch.autograd.grad(loss, [model.head.weight, model.head.bias])
                found.append(torch.cat([part.flatten() for part in parts]))
            return torch.stack(found)

        scale = torch.cat([root.flatten() for root in roots])
        target = gradients([data.dataset("validation")[place] for place in places]) / scale
        pool = gradients([data.train_dataset[row] for row in range(first["n_pool"])])
        labels = choosing["label"].to_numpy()
        means = torch.stack([target[labels == label].mean(0) for label in (0, 1)]).mean(0)
        total = total + 2 * rates[number] * (pool @ means)
    assert rates[0] > rates[1] > 0, "the mean learning rate of each epoch"
    assert [x["learning_rate"] for x in first["checkpoints"]] == rates
    scores = pl.read_parquet(first["files"]["scores"])
    np.testing.assert_allclose(scores["mean"], total.numpy(), rtol=2e-3, atol=2e-4 * float(total.abs().max()))
    assert scores["score"].equals(scores["mean"].alias("score"))


def test_the_summary_names_every_checkpoint_and_its_index(first: dict[str, Any], workspace: Path) -> None:
    assert [x["epoch"] for x in first["checkpoints"]] == [1, 2] and first["index"] == first["checkpoints"][-1]
    for one in first["checkpoints"]:
        (state,) = (workspace / "stages").glob(f"train-{first['digests']['train'][:16]}/epoch-000{one['epoch']}.ckpt")
        assert one["checkpoint_sha256"] == digest_file(state) and one["rows"] == first["n_pool"]
        manifest = workspace / "stages" / f"index-{one['digest'][:16]}" / "index" / "manifest.json"
        assert one["manifest_sha256"] == digest_file(manifest) and one["grown_from"] is None
    assert first["digests"]["index-epoch-1"] == first["checkpoints"][0]["digest"] != first["index"]["digest"]
    page = Path(first["files"]["report"]).read_text()
    assert "Adam&#39;s steps (LESS), summed over the states of the warm-up after the epochs 1 (" in page


def test_the_page_shows_the_top_row_beside_target_rows(first: dict[str, Any], folder: Path) -> None:
    page = Path(first["files"]["report"]).read_text()
    texts = dict(pl.read_csv(folder / "texts.csv").select("id", "text").iter_rows())
    assert texts[pl.read_parquet(first["files"]["selected"])["example_id"][0]] in page
    assert page.count("Target rows it helps most") == 3 == page.count("Target rows it harms most")
    assert "copied target" in page and "news" in page


def test_one_mlflow_run_has_a_child_for_each_training(first: dict[str, Any]) -> None:
    client = MlflowClient(first["mlflow_tracking_uri"])
    run = client.get_run(first["mlflow_run_id"])
    for key in ("target_accuracy", "target_loss"):
        assert run.data.metrics[f"{key}/top_k"] == first[key]["top_k"]["mean"]
    assert client.get_experiment(run.info.experiment_id).name == "select"
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    names = {f"{name}-{seed}" for name in first["target_accuracy"] for seed in (1, 2)}
    assert {child.info.run_name for child in children} == names | {"train"}
    held_out = {child.data.metrics["held_out_n"] for child in children}
    assert held_out == {first["n_held_out"]}, "every model is measured on the target rows that did not choose"
    assert not {name for child in children for name in child.data.metrics if name.startswith("val_")}


def test_a_pool_that_grew_has_only_its_new_rows_indexed(
    first: dict[str, Any], curate: Callable[..., int], folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate() == 0
    assert "Unchanged" in capsys.readouterr().out
    more = table(30, 1).filter(split="train")
    pl.concat([pl.read_csv(folder / "texts.csv"), more]).sort("text").write_csv(folder / "grown.csv")
    later = ("--data.init_args.path", str(folder / "grown.csv"), "--compare.seeds", "0")
    assert curate(*later) == 0
    assert capsys.readouterr().err.count(f"{len(more)} new rows added to the index") == 2, "of each checkpoint"
    (summary,) = (
        found
        for path in (workspace / "runs").glob("texts-*/summary.json")
        if (found := json.loads(path.read_text()))["n_pool"] != first["n_pool"]
    )
    assert summary["n_pool"] == first["n_pool"] + len(more) == summary["index"]["rows"]
    assert summary["index"]["grown_from"] == first["index"]["digest"] and summary["target_accuracy"] == {}
    assert summary["digests"]["train"] == first["digests"]["train"] and "train" in summary["reused"]
    old, new = (pl.read_parquet(one["files"]["scores"]) for one in (first, summary))
    both = old.join(new, on="example_id", suffix="_now")
    assert len(both) == len(old) and both["mean"].equals(both["mean_now"].alias("mean")), "rows keep their scores"
    assert [x["grown_from"] for x in summary["checkpoints"]] == [x["digest"] for x in first["checkpoints"]]
    assert curate(*later) == 0
    assert "Unchanged" in capsys.readouterr().out


def test_states_of_a_pool_go_with_their_stages(
    first: dict[str, Any], workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace / "pools", tmp_path / "pools")
    (tmp_path / "stages").mkdir()
    kept = {first["checkpoints"][0]["digest"], first["checkpoints"][1]["digest"]}
    for folder in (workspace / "stages").iterdir():  # those of the first state of the pool only
        if folder.is_dir() and (folder.name.startswith("train-") or folder.name[6:] in {x[:16] for x in kept}):
            (tmp_path / "stages" / folder.name).mkdir()
    (pool,) = (path for path in (tmp_path / "pools").iterdir() if path.is_dir())
    before = json.loads((pool / "states.json").read_text())["states"]
    assert main(["workspace", "prune", "--workspace", str(tmp_path), "--keep-days", "1"]) == 0
    after = json.loads((pool / "states.json").read_text())["states"]
    assert after == before[:1] and len(before) == 2
    assert [path.name for path in pool.glob("rows-*")] == [after[0]["rows"]]
    assert main(["workspace", "prune", "--workspace", str(tmp_path), "--keep-days", "0", "--dry-run"]) == 0
    assert "1 states of pools" in capsys.readouterr().out and pool.is_dir()
    assert main(["workspace", "prune", "--workspace", str(tmp_path), "--keep-days", "0"]) == 0
    assert not list((tmp_path / "pools").iterdir())


def test_a_training_is_one_of_the_rows_it_is_measured_on() -> None:
    one, same, other = (Chosen(Path("rows"), "digest", watched, 3).inputs() for watched in ("a", "a", "b"))
    assert one == same != other


def test_the_help_lists_every_key_and_imports_no_torch() -> None:
    code = (
        "import sys; from flows.cli import main; main(['select', '--help']);"
        "print([name for name in ('torch', 'prefect', 'mlflow', 'lightning', 'polars') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
    assert "--scores.how mean|max|round_robin [mean]" in result.stdout
