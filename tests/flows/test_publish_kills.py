"""kill -9 while a model is published and while the records are purged: no document runs ahead, and whoever goes on ends well."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from curation.data import build_data
from curation.unlearning import evidence
from curation.unlearning.ledger import Ledger
from curation.unlearning.searching import Search
from curation.unlearning.traces import traces_of
from flows.cli import main
from flows.files import digest_file, read_json
from flows.publishing import JOURNAL
from flows.unlearning import UnlearnRun
from tests.flows.test_unlearning import TINY
from tests.killing import Server

KILLS = 12
IDS = ["person-00/award", "person-00/book"]
PARTS = ("publish", "purge")
OPTIONS = ["--request.ledger", "true", "--request.where.column", "null", "--request.where.values", "[]"]
OPTIONS += ["--fallback", "retrain", "--tracking.register_as", "people"]


def handle(folder: Path) -> None:
    """Run unlearn as ``plan.json`` says: with or without a purge, and killed so long after it has come to a part of its end."""
    with (folder / "said.txt").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    for part in PARTS:
        setattr(UnlearnRun, part, watched(part, getattr(UnlearnRun, part), plan, folder / f"{part}.txt"))
    options = [*OPTIONS, "--purge", str(plan["purge"]).lower(), "--workspace", str(folder / "ws")]
    assert main(["unlearn", "--config", str(folder / "job.yaml"), *options]) == 0


def watched(part: str, call: Callable[..., Any], plan: dict[str, Any], file: Path) -> Callable[..., Any]:
    """A part of the run that somebody kills, or that notes how long it took."""

    def run(*arguments: Any) -> Any:
        begin, killer = time.monotonic(), None
        if plan["part"] == part:
            killer = subprocess.Popen(["sh", "-c", f"sleep {plan['after']}; kill -9 {os.getpid()}"])
        result = call(*arguments)
        if killer is not None:
            killer.kill()
        file.write_text(str(time.monotonic() - begin))
        return result

    return run


STEPS = {"handle": handle}


class Trial:
    """One workspace, brought back again and again to where a run has come to its end but for publishing."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.home, self.before = server, folder, folder / "ws", folder / "before"
        (folder / "job.yaml").write_text(TINY)
        (folder / "ids.txt").write_text("\n".join(IDS))
        told = ["--ids", str(folder / "ids.txt"), "--reason", "asked to", "--workspace", str(self.home)]
        assert main(["requests", "submit", *told]) == 0
        (folder / "ids.txt").unlink()
        assert self.killed(purge=False, part="publish", after=0.0)
        shutil.copytree(self.home, self.before, symlinks=True)
        data = build_data("curation.data.People", {"n_people": 3, "n_holdout": 2, "vocabulary": 300}, folder)
        self.search = Search(traces_of(data, [data.train_ids().index(one) for one in IDS]))

    def mlflow(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Rows of MLflow's database as it is now: a client would go on reading the file that `restore` has removed."""
        with closing(sqlite3.connect(self.home / "mlflow.db")) as connection:
            return connection.execute(query, values).fetchall()

    def alias(self) -> str | None:
        """The version that the alias points to."""
        found = self.mlflow("SELECT version FROM registered_model_aliases WHERE name = 'people'")
        return str(found[0][0]) if found else None

    def restore(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.before, self.home, symlinks=True)

    def killed(self, **plan: Any) -> bool:
        (self.folder / "plan.json").write_text(json.dumps({"part": None} | plan))
        return self.server.attempt("handle", self.folder, None)

    def lasts(self, part: str) -> float:
        return float((self.folder / f"{part}.txt").read_text())

    def run(self) -> Path:
        """The folder of the run with the evidence: another one, killed just before its end, may have found nothing to do."""
        runs = (self.home / "runs").iterdir()
        return max(runs, key=lambda run: ((run / "evidence.json").exists(), (run / "run.json").stat().st_mtime))

    def check_documents(self) -> None:
        """Nothing says what has not happened, at whatever moment this is."""
        ledger, summary = Ledger(self.home / "ledger.db"), read_json(self.run() / "summary.json")
        assert ledger.check() == []
        version, noted = self.alias(), ledger.events("published")
        if summary is not None and summary["status"] == "published":
            assert summary["alias_after"] == version == "1"
        if version is not None:
            assert evidence.verify(self.run() / "evidence.json", ledger) == []
        assert not noted or (summary is not None and summary["status"] == "published")

    def check_end(self, purge: bool) -> dict[str, Any]:
        """All is as after a run that nothing disturbed; gives what the purge came to."""
        self.check_documents()
        ledger, run = Ledger(self.home / "ledger.db"), self.run()
        summary, said = read_json(run / "summary.json"), read_json(run / "evidence.json")
        assert summary is not None and said is not None
        assert ledger.get(1).status == "published" and ledger.ids(1) == []
        (noted,) = ledger.events("published")
        assert noted.details["digest"] == digest_file(run / "evidence.json")
        assert said["publication"] == {"name": "people", "version": "1", "alias": "champion"}
        assert (summary["status"], summary["alias_before"], summary["alias_after"]) == ("published", None, "1")
        tags = dict(self.mlflow("SELECT key, value FROM model_version_tags WHERE name = 'people'"))
        assert tags["curate.status"] == "published" and tags["curate.evidence"] == digest_file(run / "evidence.json")
        ((source,),) = self.mlflow("SELECT source FROM model_versions")
        (model,) = Path(source.removeprefix("file://")).glob("*.ckpt")
        assert digest_file(model) == digest_file(run / "model.ckpt") == said["hashes"][0]["after"]
        assert self.mlflow("SELECT status FROM runs WHERE run_uuid = ?", summary["mlflow_run_id"]) == [("FINISHED",)]
        assert not (self.home / JOURNAL).exists()
        assert not purge or (not list((self.home / "purge").iterdir()) and not self.search.folder(self.home).where)
        return dict(said["purge"] or {}) | {"model": digest_file(model)}


@pytest.mark.slow
def test_killed_while_publishing_and_purging(server: Server, tmp_path: Path) -> None:
    trial, draw, kills = Trial(server, tmp_path), random.Random(0), dict.fromkeys(PARTS, 0)
    assert trial.search.folder(trial.home).where
    whole, lasts = {}, {}
    for purge in (False, True):
        trial.restore()
        assert not trial.killed(purge=purge)
        whole[purge] = trial.check_end(purge)
        lasts[purge] = {part: trial.lasts(part) for part in PARTS[: 1 + purge]}
    figures = ("stages", "files", "rows", "models", "index_rows", "left", "model")
    while min(kills.values()) < KILLS // 2:
        purge = kills["purge"] < KILLS // 2
        trial.restore()
        for _ in range(draw.randrange(1, 4)):
            part = draw.choice(PARTS[: 1 + purge])
            if not trial.killed(purge=purge, part=part, after=draw.uniform(0, lasts[purge][part])):
                # the first run may have been slow: kills would come late
                lasts[purge][part] = min(lasts[purge][part], trial.lasts(part))
                break  # it came to its end first: nothing is left to go on with
            kills[part] += 1
            trial.check_documents()
        else:
            assert not trial.killed(purge=purge)
        found = trial.check_end(purge)
        assert {name: found.get(name) for name in figures} == {name: whole[purge].get(name) for name in figures}
