"""One run of unlearn, step by step, without Prefect: which stage follows which, and what is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import approval
from flows.earlier import check_earlier, evidence_beside
from flows.files import copy_atomic, digest_of
from flows.modelling import checkpoint_of, index_of
from flows.publishing import EVIDENCE_TAG, PUBLISHING, roll_back
from flows.purge_journal import forget_closed
from flows.recorded import recording
from flows.requests import named_ids
from flows.runner import Finished
from flows.unlearn_ending import MODEL, EndingRun
from flows.unlearn_evidence import Checked, check_secrets, evidence_of, named, salt_of, write_evidence
from flows.unlearn_requests import Requests

EXACT = "E0"
"""Tier of the evidence of a model that was trained without the records."""


class UnlearnRun(EndingRun):
    """One run of `curate unlearn`. Use it as a context manager: no process is left behind, MLflow's run is closed.

    Attributes:
        ids: those asked for; None where a column's value names the records.
    """

    job = "unlearn"
    ids: list[str] | None = None

    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """`flows.unlearn`, whose import takes seconds."""
        from flows.unlearn import unlearn_prepared

        return unlearn_prepared

    def check(self) -> None:
        """See to it that secrets can be read, a purge spares the user's own files, and records removed before stay so.

        Raises:
            ConfigError: there is no such key, a purge would come upon the data file, or the model was unlearned before and its
                ledger is not this run's.
        """
        check_secrets(self.config)
        named, ledger = self.config.model, self.requests.ledger if self.requests is not None else None
        if named.registered is not None:
            digest = self.tracker.tags(named.registered).get(EVIDENCE_TAG)
            check_earlier(f"model.registered: {named.registered}", digest, ledger, self.config.request.dataset)
        if named.checkpoint is not None:
            digest = evidence_beside(named.checkpoint)
            check_earlier(f"model.checkpoint: {named.checkpoint}", digest, ledger, self.config.request.dataset)
        if self.config.purge:
            from flows import purging

            purging.check_given(self.config)

    def prepare(self) -> None:
        """As of every run; what a former run has left to do, to take back or finish, is done now.

        Raises:
            ConfigError: there is no such ledger or file of ids, or another process works on the requests.
        """
        with recording():
            undone = roll_back(self.config.workspace)
        if undone is not None:
            self.screen.line(f"warning: {undone}")
        self.ids = named_ids(self.config.request.model_dump())
        if self.config.request.ledger:
            self.requests = Requests.claim(self.config.request, self.config.workspace)
            forget_closed(self.config.workspace, self.requests.ledger)
            if self.requests.batch is not None and self.goes_on(self.requests.batch):
                return
            self.ids = self.requests.ids
        super().prepare()
        if self.unchanged is not None:
            self.close(self.unchanged)

    def settled(self, summary: Mapping[str, Any]) -> bool:
        """All but a run that waits for an answer, which may have come, or has not got one in time, or was given another."""
        if summary["status"] == approval.REJECTED:
            return approval.evidence_of(self.folder.path) is None
        return summary["status"] not in (approval.AWAITING, approval.EXPIRED)

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
            self.ids = self.requests.refuse(found.values["unknown"], self.screen.line, for_good=not self.config.dry_run)
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
                "retain": self._retain,
                "weights": weights,
                "unlearn": {name: unlearn[name] for name in ("retain_rows", "batch_size", "seed")},
            },
            checkpoint=checkpoint_of(model),
            index_path=index_of(index) if index else None,
            records=str(records.files["records"]),
        )
        for warning in done.values["warnings"]:
            self.screen.line(f"warning: {warning}")
        said = {"run": self.folder.digest, "records": records.values["records"], "weights": done.digest}
        if self.config.approval.required:  # what is approved: asked anew for another end, the batch is begun again
            said["follows"] = digest_of(self.follows())
        self.advance("weighed", said)
        return done

    def unapproved(self, records: Finished) -> str | None:
        """How the run ends for now for want of an approval; None where it may go on."""
        section, folder = self.config.approval, self.folder.path
        follows, dataset = self.follows(), self.config.request.dataset
        digest = approval.digest_of(records.files["records"], follows, salt_of(self), dataset)
        status = approval.status(folder, digest, section.expires_after, follows)
        if status != approval.APPROVED:
            return status
        self.advance("approved", approval.evidence_of(folder) or {})
        return None

    def unlearn(self, model: Finished, records: Finished, weights: Finished) -> Finished:
        """Change the model."""
        inputs = {
            "model": model.digest,
            "records": records.digest,
            "weights": weights.digest,
            "retain": self._retain,
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
            without=str(records.files["decisions"]),
        )
        for warning in done.values["warnings"]:
            self.screen.line(f"warning: {warning}")
        self.note_training("unlearn", done, {"data": self.loaded["digest"], **self.config.unlearn.model_dump()})
        self.advance("unlearned", {"model": done.digest, "changed": done.values["changed"]})
        return done

    def references(self, records: Finished) -> list[Finished]:
        """Models trained without the records, each from a seed of its own; none where that is not asked for."""
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
            "retain": self._retain,
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
        passed, tier = checked.values["passed"], checked.values["tier"]
        found, title = Checked(model, unlearned, references, records, checked, tier, accepted=passed), "unlearn"
        if not passed and self.config.fallback == "retrain":
            found, title = self._retrained(found), f"retrain-{self.config.train.seed + 1}"
        ids = named(found)
        if not found.accepted:
            self.evidence = write_evidence(self, evidence_of(self, found, None), ids)
            return self.finish("verify_failed", records, found.verified, found.tier)
        self.advance("verified", {"verdict": found.verified.values["verdict"], "tier": found.tier})
        copy_atomic(Path(checkpoint_of(found.after)), self.folder.path / MODEL)
        self.publication = self.register(self.runs[title])
        content = evidence_of(self, found, self.publication)
        if self.config.purge:
            from flows import purging

            self.purging = purging.begin(self, found, content)
            return self.purging.summary
        self.evidence = write_evidence(self, content, ids)
        return self.finish(PUBLISHING, records, found.verified, found.tier)

    def _retrained(self, failed: Checked) -> Checked:
        """The first of the models trained without the records, compared with the others, in place of one that failed."""
        verdict = failed.verified.values["verdict"]
        for failure in failed.verified.values["failures"]:
            self.screen.line(f"check failed: {failure}")
        self.screen.line(f"the checks failed ({verdict}): the model trained without the records is taken")
        chosen, *others = failed.references
        self.advance("retrained", {"model": chosen.digest, "verdict": verdict})
        verified = self.verify(failed.before, chosen, others, failed.records, "verify-retrained")
        return replace(failed, after=chosen, references=others, verified=verified, tier=EXACT, accepted=True)

    @property
    def _retain(self) -> dict[str, Any]:
        return self.config.retain.model_dump(mode="json")

    def _resolve(self, index: Finished | None) -> Finished:
        inputs = {
            "data": self.loaded["digest"],
            "table": self.loaded["table"],
            "index": index.digest if index else None,
            "ids": self.ids,
            "request": self.config.request.model_dump(mode="json", include={"where", "near_duplicates", "ledger"}),
            "removed": self.requests.removed if self.requests is not None else None,
            "retain": self._retain,
        }
        place = self.requests.place if self.requests is not None else None
        return self.run("resolve", inputs, ids=self.ids, ledger=place, index_path=index_of(index) if index else None)
