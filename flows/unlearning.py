"""One run of unlearn, step by step, without Prefect: which stage follows which, and what is published."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.files import copy_atomic
from flows.modelling import checkpoint_of, index_of
from flows.recorded import RecordedRun
from flows.requests import read_ids
from flows.runner import Finished
from flows.unlearn_requests import Requests
from flows.unlearn_schema import UnlearnConfig
from flows.unlearn_summary import summarise

MODEL = "model.ckpt"
EXACT = "E0"
MANY = 20
"""Models to compare with from which on the evidence is of tier E1."""


class UnlearnRun(RecordedRun):
    """One run of `curate unlearn`. Use it as a context manager: no process is left behind, MLflow's run is closed.

    Attributes:
        requests: the batch of the ledger that this run answers; None where the configuration names the records.
        ids: those asked for; None where a column's value names the records.
    """

    job = "unlearn"
    # They name the records, and MLflow would keep them for good.
    secret = frozenset({"request", "records.parquet", "weights.parquet", "verdicts.parquet"})
    config: UnlearnConfig

    requests: Requests | None = None
    ids: list[str] | None = None
    _published: str | None = None  # title of the training that is published

    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """`flows.unlearn`, whose import takes seconds."""
        from flows.unlearn import unlearn_prepared

        return unlearn_prepared

    def check(self) -> None:
        """Read the ids, or claim what waits in the ledger.

        Raises:
            ConfigError: there is no such file or ledger, or another process works on its requests.
        """
        request = self.config.request
        if request.ledger:
            self.requests = Requests.claim(request, self.config.workspace)
            self.ids = self.requests.ids
        elif request.ids_file is not None:
            self.ids = read_ids(request.ids_file, "request.ids_file")
        elif request.ids:
            self.ids = [str(one) for one in request.ids]

    def prepare(self) -> None:
        """As of every run; what a former run has done and not told the ledger any more is told it now."""
        super().prepare()
        if self.unchanged is not None:
            self._close(self.unchanged)

    def identity(self) -> dict[str, Any]:
        """As of every run, and which records it is about."""
        batch = self.requests.number if self.requests is not None else None
        return super().identity() | {"ids": self.ids, "batch": batch}

    @property
    def asked(self) -> bool:
        """Whether anything is asked for."""
        return self.requests is None or self.requests.batch is not None

    def index_if_used(self, model: Finished) -> Finished | None:
        """The index of the training rows; None where nothing is read from one."""
        return self.index(model) if self.config.indexes else None

    def resolve(self, index: Finished | None) -> Finished | None:
        """Find the records; None where there are none to remove. Requests that name unknown records are refused."""
        found = self._resolve(index)
        if self.requests is not None and found.values["unknown"]:
            self.ids = self.requests.refuse(found.values["unknown"], self.screen.line)
            found = self._resolve(index)
        return found if found.values["records"] else None

    def weigh(self, model: Finished, index: Finished | None, records: Finished) -> Finished:
        """Say how hard each record is pushed."""
        weights, unlearn = (getattr(self.config, name).model_dump(mode="json") for name in ("weights", "unlearn"))
        done = self.run(
            "weigh",
            {
                "model": model.digest,
                "index": index.digest if index else None,
                "records": records.digest,
                "weights": weights,
                "unlearn": {name: unlearn[name] for name in ("retain_rows", "batch_size", "seed")},
            },
            checkpoint=checkpoint_of(model),
            index_path=index_of(index) if index else None,
            records=str(records.files["records"]),
        )
        for warning in done.values["warnings"]:
            self.screen.line(f"warning: {warning}")
        self._advance("weighed", {"records": records.values["records"], "weights": done.digest})
        return done

    def unlearn(self, model: Finished, records: Finished, weights: Finished) -> Finished:
        """Change the model."""
        inputs = {
            "model": model.digest,
            "records": records.digest,
            "weights": weights.digest,
            "refresh": self.config.weights.model_dump(mode="json"),
            "unlearn": self.config.unlearn.model_dump(mode="json"),
            "train": self.config.train.model_dump(mode="json"),
        }
        done = self.run(
            "unlearn",
            inputs,
            checkpoint=checkpoint_of(model),
            records=str(records.files["records"]),
            weights_file=str(weights.files["weights"]),
        )
        self.note_training("unlearn", done, {"data": self.loaded["digest"], **self.config.unlearn.model_dump()})
        self._advance("unlearned", {"model": done.digest, "changed": done.values["changed"]})
        return done

    def references(self, records: Finished) -> list[Finished]:
        """Models trained without the records, each from a seed of its own."""
        first, decisions = self.config.train.seed + 1, str(records.files["decisions"])
        return [
            self.train(f"retrain-{seed}", records.values["digest"], decisions, seed)
            for seed in range(first, first + self.config.verify.seeds)
        ]

    def verify(
        self, model: Finished, after: Finished, references: list[Finished], records: Finished, title: str = "verify"
    ) -> Finished:
        """Compare a model with those that never saw the records."""
        inputs = {
            "before": model.digest,
            "after": after.digest,
            "references": [each.digest for each in references],
            "records": records.digest,
            "verify": self.config.verify.model_dump(mode="json"),
            "seed": self.config.unlearn.seed,
        }
        arguments = self.arguments(
            checkpoint=checkpoint_of(model),
            checkpoint_after=checkpoint_of(after),
            references=[checkpoint_of(each) for each in references],
            records=str(records.files["records"]),
        )
        self.stages[title] = self.runner.run("verify", inputs, arguments, title=title)
        return self.stages[title]

    def publish(
        self,
        model: Finished,
        unlearned: Finished,
        references: list[Finished],
        records: Finished,
        checked: Finished,
    ) -> dict[str, Any]:
        """Publish the unlearned model where the checks hold, else one trained without the records if that is allowed."""
        chosen, others, tier = unlearned, references, "E1" if len(references) >= MANY else "E2"
        self._published = "unlearn"
        if not checked.values["passed"]:
            if self.config.fallback == "none":
                return self.finish("verify_failed", records, checked, None)
            self.screen.line(
                f"the checks failed ({'; '.join(checked.values['failures'])}): the model trained without the records is taken"
            )
            (chosen, *others), tier = references, EXACT
            self._published = f"retrain-{self.config.train.seed + 1}"
            self._advance("retrained", {"model": chosen.digest, "verdict": checked.values["verdict"]})
            checked = self.verify(model, chosen, others, records, "verify-retrained")
        self._advance("verified", {"verdict": checked.values["verdict"], "tier": tier})
        copy_atomic(Path(checkpoint_of(chosen)), self.folder.path / MODEL)
        evidence = None
        if self.requests is not None:
            from flows.unlearn_evidence import write_evidence

            evidence = write_evidence(self, self.requests, model, chosen, others, records, checked, tier)
        return self.finish("published", records, checked, tier, evidence)

    def finish(
        self,
        status: str,
        records: Finished | None = None,
        checked: Finished | None = None,
        tier: str | None = None,
        evidence: Path | None = None,
    ) -> dict[str, Any]:
        """Put the results into the output folder and close the run; returns the summary."""
        if status == "no_action" and self.requests is not None and self.requests.refused:
            status = "rejected"
        target, done = self.folder.path, self.stages
        results = [MODEL] * (status == "published")
        for stage, name in (("resolve", "records"), ("weigh", "weights")):
            if records is not None and stage in done:
                copy_atomic(done[stage].files[name], target / f"{name}.parquet")
                results.append(f"{name}.parquet")
        if checked is not None:
            copy_atomic(checked.files["assessment"], target / "assessment.json")
            copy_atomic(checked.files["verdicts"], target / "verdicts.parquet")
            results += ["assessment.json", "verdicts.parquet"]
        if evidence is not None:
            results += [evidence.name, f"{evidence.stem}.seal.json"]
        summary = summarise(
            self.config,
            done,
            status=status,
            folder=target,
            results=results,
            checked=checked.values if checked else {},
            tier=tier,
            batch=self.requests.number if self.requests else None,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self.flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self.began,
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )
        self.end(summary, results, {})
        self._close(summary)
        return summary

    def registers(self) -> str | None:
        """The model that was published."""
        return self.runs.get(self._published) if self._published and (self.folder.path / MODEL).is_file() else None

    def _resolve(self, index: Finished | None) -> Finished:
        inputs = {
            "data": self.loaded["digest"],
            "table": self.loaded["table"],
            "index": index.digest if index else None,
            "ids": self.ids,
            "request": self.config.request.model_dump(mode="json", include={"where", "near_duplicates", "ledger"}),
        }
        return self.run("resolve", inputs, ids=self.ids, index_path=index_of(index) if index else None)

    def _close(self, summary: Mapping[str, Any]) -> None:
        """Bring the requests to their end, last of all: a run that was killed before it finds its batch again."""
        status = summary["status"]
        details = {"verdict": summary["verdict"]} if summary["verdict"] is not None else {}
        self._advance("no_action" if status == "rejected" else status, details)

    def _advance(self, status: str, details: dict[str, Any]) -> None:
        if self.requests is not None:
            self.requests.advance(status, details)
