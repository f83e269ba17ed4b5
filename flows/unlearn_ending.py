"""How a run of unlearn ends: its results, the purge of what is left of the records, the model's publication, the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flows import approval
from flows.files import copy_atomic, digest_file
from flows.outputs import RunFolder
from flows.publishing import Place, published, roll_back
from flows.recorded import RecordedRun, recording
from flows.runner import Finished
from flows.unlearn_evidence import FILES as EVIDENCE
from flows.unlearn_evidence import problems_of, write_evidence
from flows.unlearn_requests import Requests
from flows.unlearn_schema import UnlearnConfig
from flows.unlearn_summary import summarise

if TYPE_CHECKING:
    from flows.purge_journal import Journal

MODEL = "model.ckpt"


class EndingRun(RecordedRun):
    """A run whose model is published last of all, once nothing else can fail.

    Attributes:
        requests: the batch of the ledger that this run answers; None where the configuration names the records.
        purging: how the run is finished once the records are to be purged.
        released_run: MLflow's run of the training whose model is published.
        evidence: the file, once it is written.
    """

    # They name the records, and MLflow would keep them for good.
    secret = frozenset({"request", "records.parquet", "weights.parquet", "verdicts.parquet", "retained.parquet"})
    config: UnlearnConfig

    requests: Requests | None = None
    purging: Journal | None = None
    released_run: str | None = None
    evidence: Path | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.requests is not None:
            self.requests.release()

    def purge(self) -> dict[str, Any]:
        """Remove what is left of the records, then write the evidence and publish; goes on where it was interrupted."""
        from flows import purging

        if self.purging is None:
            raise RuntimeError("nothing is to be published that a purge goes before")
        journal = purging.carry_out(self, self.purging)
        self.evidence = write_evidence(self, purging.content_of(journal))
        summary = journal.summary | {"purge": journal.done}
        self.end(summary, journal.results, {})
        purging.forget(journal)
        self.close(summary)
        journal.remove(self.config.workspace)
        return summary

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
        results = [MODEL] * (status == "published") + self.put(records, checked, copy_atomic)
        if self.evidence is not None:
            results += EVIDENCE
        summary = self.summary(status, results, checked, tier)
        self.end(summary, results, {})
        self.close(summary)
        return summary

    def put(
        self, records: Finished | None, checked: Finished | None, copy: Callable[[Path, Path], object]
    ) -> list[str]:
        """Put what was found of the records into the output folder; gives the names of the files."""
        files = {}
        for stage, name in (("resolve", "records"), ("weigh", "weights")):
            if records is not None and stage in self.stages:
                files[f"{name}.parquet"] = self.stages[stage].files[name]
        if checked is not None:
            copy_atomic(checked.files["assessment"], self.folder.path / "assessment.json")
            files["verdicts.parquet"] = checked.files["verdicts"]
        for name, source in files.items():
            copy(source, self.folder.path / name)
        return [*files, *["assessment.json"] * (checked is not None)]

    def summary(self, status: str, results: list[str], checked: Finished | None, tier: str | None) -> dict[str, Any]:
        """The summary of a run that ends so."""
        folder = self.folder.path
        return summarise(
            self.config,
            self.stages,
            status=status,
            folder=folder,
            results=results,
            checked=checked.values if checked else {},
            tier=tier,
            approval=approval.entry_of(folder) if self.config.approval.required else None,
            batch=self.requests.number if self.requests else None,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self.flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self.began,
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )

    def goes_on(self, batch: int) -> bool:
        """Whether a former run had begun to purge the records of the batch; then it is finished."""
        from flows.purge_journal import Journal

        self.purging = journal = Journal.of(self.config.workspace, batch)
        if journal is None:
            return False
        self._folder = RunFolder(Path(journal.folder), journal.digest, "output_dir")
        self._folder.take()
        with recording():
            self.tracker.start(self.config.name, {}, resume=self._folder.mlflow_run_id)
            roll_back(self._folder.path)
        self.released_run = journal.published
        self.screen.line(f"going on with the purge of batch {batch}, which was interrupted")
        self.unchanged = self.purge()
        return True

    @contextmanager
    def released(self) -> Iterator[dict[str, Any]]:
        """Register the model that is published, if that is asked for, and move the alias to it."""
        name, evidence = self.config.tracking.register_as, self.evidence
        if name is None:
            yield {}
            return
        place = Place(self.tracker.uri, name, self.config.publish.alias)
        if self.released_run is None or evidence is None:
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
            self.released_run,
            tags,
            lambda: problems_of(self, evidence, model),
            lock,
        ) as found:
            yield found

    def close(self, summary: Mapping[str, Any]) -> None:
        """Bring the requests to their end, last of all: a run that was killed before it finds its batch again."""
        if summary["status"] == approval.EXPIRED:
            approval.forget(self.folder.path)
        if self.requests is not None:
            self.requests.close(summary)

    def advance(self, status: str, details: dict[str, Any]) -> None:
        """Tell the ledger how far the run has come."""
        if self.requests is not None:
            self.requests.advance(status, details)
