"""One run of unlearn, step by step, without Prefect: which stage follows which, and what is published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from flows import approval
from flows.files import copy_atomic, digest_file
from flows.modelling import checkpoint_of, index_of
from flows.publishing import Place, published, roll_back, settle
from flows.recorded import RecordedRun, recording
from flows.requests import read_ids
from flows.runner import Finished
from flows.unlearn_evidence import FILES as EVIDENCE
from flows.unlearn_evidence import Checked, check_secrets, problems_of, salt_of, write_evidence
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
    _published: str | None = None  # MLflow's run of the training whose model is published
    _evidence: Path | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.requests is not None:
            self.requests.release()

    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """`flows.unlearn`, whose import takes seconds."""
        from flows.unlearn import unlearn_prepared

        return unlearn_prepared

    def check(self) -> None:
        """Read the ids, or claim what waits in the ledger.

        Raises:
            ConfigError: there is no such file, key or ledger, or another process works on its requests.
        """
        check_secrets(self.config)
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
            settle(self.folder.path)
            self._close(self.unchanged)

    def settled(self, summary: Mapping[str, Any]) -> bool:
        """All but a run that waits for an answer, which may have come, or has not got one in time."""
        return summary["status"] not in (approval.AWAITING, approval.EXPIRED)

    def begin(self, flow_run_id: str | None) -> str | None:
        """As of every run; what an earlier start has published without coming to its end is taken back first."""
        killed = super().begin(flow_run_id)
        with recording():
            undone = roll_back(self.folder.path)
        if undone is not None:
            self.screen.line(f"warning: {undone}")
        return killed

    def identity(self) -> dict[str, Any]:
        """As of every run, and which records it is about: of the ledger those of the batch as it was claimed."""
        if self.requests is None:
            return super().identity() | {"ids": self.ids, "batch": None}
        batch = self.requests.batch
        return super().identity() | {"ids": None, "batch": [batch.number, batch.digest] if batch else None}

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

    def unapproved(self, records: Finished) -> str | None:
        """How the run ends for now for want of an approval; None where it may go on."""
        section, folder = self.config.approval, self.folder.path
        digest = approval.digest_of_records(records.files["records"], salt_of(self), self.config.request.dataset)
        status = approval.status(folder, digest, section.expires_after)
        if status != approval.APPROVED:
            return status
        self._advance("approved", approval.evidence_of(folder) or {})
        return None

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
        for warning in done.values["warnings"]:
            self.screen.line(f"warning: {warning}")
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
        passed, tier = checked.values["passed"], "E1" if len(references) >= MANY else "E2"
        found, title = Checked(model, unlearned, references, records, checked, tier, published=passed), "unlearn"
        if not passed and self.config.fallback == "retrain":
            found, title = self._retrained(found), f"retrain-{self.config.train.seed + 1}"
        if not found.published:
            self._evidence = write_evidence(self, found)
            return self.finish("verify_failed", records, found.verified)
        self._advance("verified", {"verdict": found.verified.values["verdict"], "tier": found.tier})
        copy_atomic(Path(checkpoint_of(found.after)), self.folder.path / MODEL)
        self._evidence, self._published = write_evidence(self, found), self.runs.get(title)
        return self.finish("published", records, found.verified, found.tier)

    def _retrained(self, failed: Checked) -> Checked:
        """The first of the models trained without the records, compared with the others, in place of one that failed."""
        verdict = failed.verified.values["verdict"]
        self.screen.line(f"the checks failed ({verdict}): the model trained without the records is taken")
        chosen, *others = failed.references
        self._advance("retrained", {"model": chosen.digest, "verdict": verdict})
        verified = self.verify(failed.before, chosen, others, failed.records, "verify-retrained")
        return replace(failed, after=chosen, references=others, verified=verified, tier=EXACT, published=True)

    def finish(
        self,
        status: str,
        records: Finished | None = None,
        checked: Finished | None = None,
        tier: str | None = None,
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
        if self._evidence is not None:
            results += EVIDENCE
        summary = summarise(
            self.config,
            done,
            status=status,
            folder=target,
            results=results,
            checked=checked.values if checked else {},
            tier=tier,
            approval=approval.entry_of(target) if self.config.approval.required else None,
            batch=self.requests.number if self.requests else None,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self.flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self.began,
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )
        self.end(summary, results, {})
        self._close(summary)
        return summary

    @contextmanager
    def released(self) -> Iterator[dict[str, Any]]:
        """Register the model that is published, if that is asked for, and move the alias to it."""
        name, evidence = self.config.tracking.register_as, self._evidence
        if name is None:
            yield {}
            return
        place = Place(self.tracker.uri, name, self.config.publish.alias)
        if self._published is None or evidence is None:
            version = place.version()
            yield {"alias": place.alias, "alias_before": version, "alias_after": version}
            return
        model = self.folder.path / MODEL
        tags = {
            "curate.run": self.folder.digest,
            "curate.evidence": digest_file(evidence),
            "curate.evidence_file": f"runs:/{self.tracker.run_id}/{evidence.name}",
        }
        lock = self.config.workspace / "publishing.lock"
        with published(
            self.tracker,
            place,
            self.folder.path,
            model,
            self._published,
            tags,
            lambda: problems_of(self, evidence, model),
            lock,
        ) as found:
            yield found

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
        if summary["status"] == approval.EXPIRED:
            approval.forget(self.folder.path)
        if self.requests is not None:
            self.requests.close(summary)

    def _advance(self, status: str, details: dict[str, Any]) -> None:
        if self.requests is not None:
            self.requests.advance(status, details)
