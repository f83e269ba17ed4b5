"""How a run of unlearn ends: its results, the purge of what is left of the records, the model's publication, the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from curation.data.text_tokens import TOKENIZER
from curation.unlearning.evidence_model import Publication
from curation.unlearning.statuses import PUBLISHED
from flows import approval
from flows.files import copy_atomic, digest_file
from flows.outputs import RunFolder
from flows.publishing import EVIDENCE_TAG, PUBLISHING, Place, published, published_here, register
from flows.recorded import RecordedRun, recording
from flows.runner import Finished
from flows.unlearn_evidence import FILES as EVIDENCE
from flows.unlearn_evidence import problems_of, write_evidence
from flows.unlearn_requests import Requests
from flows.unlearn_schema import UnlearnConfig
from flows.unlearn_summary import summarise

if TYPE_CHECKING:
    from curation.unlearning.requests import Batch
    from flows.purge_journal import Journal

MODEL, COLLATERAL = "model.ckpt", "collateral.parquet"


class EndingRun(RecordedRun):
    """A run whose model is published last of all, once nothing else can fail.

    Attributes:
        requests: the batch of the ledger that this run answers; None where the configuration names the records.
        purging: how the run is finished once the records are to be purged.
        publication: where the model is to go; None as long as none may be published.
        evidence: the file, once it is written.
    """

    # They name records, some of which a later request may be about, and MLflow would keep them for good.
    secret = frozenset(
        {"request", "retain", "records.parquet", "weights.parquet", "verdicts.parquet", "retained.parquet", COLLATERAL}
        | {TOKENIZER}
    )
    config: UnlearnConfig

    requests: Requests | None = None
    purging: Journal | None = None
    publication: Publication | None = None
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
        self._forget(journal, summary)
        return summary

    def _forget(self, journal: Journal, summary: Mapping[str, Any]) -> None:
        """Remove what was searched for, close the requests, and with that there is nothing to go on with."""
        from flows import purging

        purging.forget(journal)
        self.close(summary)
        journal.remove(self.config.workspace)

    def finish(
        self,
        status: str,
        records: Finished | None = None,
        checked: Finished | None = None,
        tier: str | None = None,
    ) -> dict[str, Any]:
        """Put the results into the output folder and close the run; returns the summary."""
        if status == "no_action" and self.requests is not None and self.requests.batch is not None:
            if self.config.dry_run:  # which closes no request
                status = "dry_run"
            elif self.requests.refused:
                status = "rejected"
        results = [MODEL] * (status == PUBLISHING) + self.put(records, checked, copy_atomic)
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
        files, plain = {}, list[str]()
        for stage, name in (("resolve", "records"), ("weigh", "weights")):
            if records is not None and stage in self.stages:
                files[f"{name}.parquet"] = self.stages[stage].files[name]
        if checked is not None:
            plain = ["assessment.json", COLLATERAL]  # no removed record is named in them but by its position
            for name in plain:
                copy_atomic(checked.files[Path(name).stem], self.folder.path / name)
            files["verdicts.parquet"] = checked.files["verdicts"]
        for name, source in files.items():
            copy(source, self.folder.path / name)
        return [*files, *plain]

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

    def goes_on(self, batch: Batch) -> bool:
        """Whether a former run had begun to purge the records of the batch; then it is finished."""
        from flows import purging
        from flows.purge_journal import Journal

        self.purging = journal = Journal.of(self.config.workspace, batch.digest)
        if journal is None:
            return False
        self._folder = RunFolder(Path(journal.folder), journal.digest, "output_dir")
        published = self._folder.finished(self.code, self.screen.line)
        if published is not None:  # killed between its end and that of its requests
            self._forget(journal, published)
            self.unchanged = published
            return True
        self._folder.take()
        with recording():
            self.tracker.start(self.config.name, {}, resume=self._folder.mlflow_run_id)
        self.publication = purging.content_of(journal).publication
        self.screen.line(f"going on with the purge of batch {batch.number}, which was interrupted")
        self.unchanged = self.purge()
        return True

    def follows(self) -> list[str]:
        """What becomes of an unlearned model and of what is left of the records, a sentence each: who approves, approves that."""
        place, config = self._place(), self.config
        if not config.verify.seeds:
            return [
                "Nothing is published, registered or removed: no model to compare with is trained (verify.seeds: 0)."
            ]
        if place is None:
            said = ["The new model is put into the folder of the run and registered nowhere."]
        else:
            moves = "no alias moves to it" if place.alias is None else f"the alias {place.alias} moves to it"
            said = [f"The new model becomes a version of {place.name} in MLflow at {place.uri}, and {moves}."]
        instead = "one trained without the records takes its place" if config.fallback == "retrain" else "none does"
        said.append(f"If it fails the checks, {instead}.")
        if config.purge:
            index = f" and from the index at {config.index.path}" if config.index.path is not None else ""
            said.append(f"What is left of the records is removed from {config.workspace}{index} for good.")
        else:
            said.append("The records stay in the data, and in all that was made from it before.")
        return said

    def register(self, trained: str) -> Publication:
        """Make a model that may be published a version in MLflow's registry, if that is asked for; no alias moves yet.

        Args:
            trained: MLflow run of its training.
        """
        place = self._place()
        if place is None:
            return Publication()
        with recording():
            version = register(self.tracker, place, trained, {"curate.run": self.folder.digest})
        return Publication(place.name, version, place.alias)

    def _place(self) -> Place | None:
        name = self.config.tracking.register_as
        return None if name is None else Place(self.tracker.uri, name, self.config.publish.alias)

    @contextmanager
    def released(self) -> Iterator[dict[str, Any]]:
        """Move the alias to the model that is published, if there is one; only from then on the summary says so."""
        to, evidence = self.publication, self.evidence
        if to is None or evidence is None:
            place = self._place()
            version = None if place is None else place.version()
            yield {} if place is None else {"alias": place.alias, "alias_before": version, "alias_after": version}
            return
        if to.name is None or to.version is None:
            with published_here(self.folder.path, self.config.workspace):
                yield {"status": PUBLISHED}
            return
        place = Place(
            self.tracker.uri, to.name, to.alias
        )  # as the evidence says, whatever the configuration says by now
        model = self.folder.path / MODEL
        tags = {
            EVIDENCE_TAG: digest_file(evidence),
            "curate.evidence_file": f"runs:/{self.tracker.run_id}/{evidence.name}",
        }
        with published(
            self.tracker,
            place,
            self.folder.path,
            model,
            to.version,
            tags,
            lambda: problems_of(self, evidence, model),
            self.config.workspace,
        ) as found:
            yield {"status": PUBLISHED, **found}

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
