"""The purge that ends a run of unlearn: what is left of the records goes, and then only the evidence says what there was.

The order makes it safe to be killed at any moment. First everything that the end of the run needs, without an id in the
clear, goes into a journal in the workspace; from then on the next run finds the same batch open and goes on from there. Then
the rows go on the list of those that stay out (`curation.unlearning.exclusions`), out of an index of the user's, and out of
the workspace (`flows.sweeping`). The evidence holds what a search through all files came to after that. Last of all what was
searched for is removed, and the ledger closes the requests and forgets their ids.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import TypeAdapter

from curation.data.text_tokens import TOKENIZER, TRAINED
from curation.examples import write_parquet_atomic
from curation.unlearning import evidence, exclusions
from curation.unlearning.evidence_model import Evidence, Hashes
from curation.unlearning.salt import Salt
from curation.unlearning.searching import Search
from curation.unlearning.traces import Traces
from flows import workspace
from flows.errors import ConfigError
from flows.files import copy_atomic, digest_file, read_json, write_json
from flows.folder import MANIFEST
from flows.index_jobs import store_errors
from flows.modelling import PURGED, checkpoint_of, index_of
from flows.publishing import PUBLISHING
from flows.purge_journal import FOLDER, Journal
from flows.purge_scope import naming, of_other_data, tokenizers
from flows.requests import ledger_of
from flows.schema import leaves
from flows.sweeping import Tally, sweep
from flows.unlearn_ending import MODEL, EndingRun
from flows.unlearn_evidence import FILES, Checked, named
from lorif_core.remote import checkout

if TYPE_CHECKING:
    from flows.unlearn_schema import UnlearnConfig
    from flows.unlearning import UnlearnRun

RETAINED, ASSESSMENT = "retained.parquet", "assessment.json"
INDEX_ROWS = "index_rows"
GIVEN = (
    "The file that the data was read from was not changed. Jobs in this workspace leave the records out, by a list of salted "
    f"hashes of their content; {RETAINED} holds the rows that stay."
)
MODEL_KEPT = "The model as it was, which knows the records, was named by the user and lies where it was."
REGISTERED = "A version registered in MLflow of a model that knows the records was kept, for going back to it."
OTHERS = (
    "{:,} other checkpoints in the workspace were made by other runs and were not removed; those trained on this data know the "
    "records."
)
ELSEWHERE = (
    "MLflow keeps its files outside of the workspace, where nothing was removed: models, pages and tables of rows that earlier "
    "runs put there may hold the records."
)
APART = (
    "Rows of the data have no ids but their numbers: results of runs over other files were left as they are, where the same "
    "number is another row."
)
PREFECT = (
    "What Prefect keeps was not searched, its database lies outside of the workspace: it is told no ids of the ledger's, but was "
    "told those that the configurations of earlier runs named, and of each earlier run of clean the ids, labels and reasons of the "
    "rows it suspected most."
)
VOCABULARY = (
    "The model's tokenizer was learnt from data with the records, whose words, names too, can be tokens of it. "
    f"{TOKENIZER} stands for it: it has no word that only the removed records need, and gives all rows that stay the same "
    "ids. Copy it out of the workspace, where a later purge removes it, and name the copy as data.init_args.tokenizer before the "
    "records go from the data file: one learnt from a changed file is not the model's."
)
NAMED_TOKENIZER = (
    "The tokenizer's file that the configuration names was not changed: it may hold words of the removed records."
)
LEFT = "The search found traces of the records in {}, which a purge does not change."


def check_given(config: UnlearnConfig) -> None:
    """See to it that no file of the user's that data or model are read from lies where a purge removes what it finds.

    Raises:
        ConfigError: one does.
    """
    home = config.workspace.resolve()
    problems = [
        f"{section}.init_args.{key}: {path} lies in the workspace ({home}), where a purge removes whatever holds the records: "
        "move it out of there"
        for section in ("data", "model")
        for key, value in leaves(getattr(config, section).init_args)
        if isinstance(value, str) and value and os.path.exists(path := (config.root / value).resolve())
        if home in (path, *path.parents)
    ]
    if problems:
        raise ConfigError(problems)


def begin(run: UnlearnRun, found: Checked, said: Evidence) -> Journal:
    """Put the results into the output folder, no record named in them, and write down how the run goes on from there.

    Args:
        run: whose model is to be published.
        found: the model, and what it was compared with.
        said: the evidence, but for what the purge comes to.
    """
    requests, config, index = run.requests, run.config, run.stages.get("index")
    if requests is None or requests.batch is None:
        raise RuntimeError("only requests of the ledger are purged")
    evidence.check_names(evidence.document(said, requests.ledger, requests.batch), [*requests.ids, *named(found)])
    records, unlearned = found.records, run.stages["unlearn"]
    trace = run.run(
        "trace",
        {"records": records.digest, "index": index.digest if index else None},
        records=str(records.files["records"]),
        decisions=str(records.files["decisions"]),
        index_path=index_of(index) if index else None,
    )
    copy_atomic(trace.files["retained"], run.folder.path / RETAINED)
    salt, dataset = requests.ledger.salt, requests.dataset
    results = [MODEL, *run.put(records, found.verified, lambda source, target: salted(source, target, salt, dataset))]
    write_json(
        run.folder.path / ASSESSMENT,
        counted(
            read_json(found.verified.files["assessment"]),
            pl.read_parquet(records.files["records"])["position"].to_list(),
        ),
    )
    if "tokenizer" in trace.files:
        copy_atomic(trace.files["tokenizer"], run.folder.path / TOKENIZER)
        results.append(TOKENIZER)
        given = config.data.init_args.get("tokenizer", TRAINED)
        before = None if given == TRAINED else digest_file(config.root / given)
        hashes = Hashes(TOKENIZER, before, digest_file(run.folder.path / TOKENIZER))
        said = replace(
            said, hashes=[*said.hashes, hashes], caveats=[*said.caveats, *[NAMED_TOKENIZER] * (before is not None)]
        )
    results += [RETAINED, *FILES]
    knowing = [found.before, *[unlearned] * (found.after is not unlearned)]
    return Journal(
        batch=requests.batch.number,
        claim=requests.batch.digest,
        folder=str(run.folder.path),
        digest=run.folder.digest,
        stages=sorted(stage.folder.name for stage in run.stages.values() if stage.folder.parent.name == "stages"),
        trace=str(trace.folder),
        data=run.loaded["digest"],
        index=None if config.index.path is None else str(config.index.path),
        models=[digest_file(Path(checkpoint_of(model))) for model in knowing],
        keep=[] if config.model.checkpoint is None else [str(config.model.checkpoint)],
        summary=run.summary(PUBLISHING, results, found.verified, found.tier),
        results=results,
        evidence=asdict(said),
        done={},
    ).write(config.workspace)


def salted(source: Path, target: Path, salt: Salt, dataset: str) -> None:
    """Copy a table about records with salted hashes in place of their ids and contents."""
    frame = pl.read_parquet(source)
    ids = {"example_id": "record", "of": "of"}

    def hashed(name: str, *kind: str) -> pl.Series:
        cells = frame[name].to_list()
        texts = [None if cell is None else salt.salted(*kind, dataset, str(cell)) for cell in cells]
        return pl.Series(name, texts, dtype=pl.String)

    changed = [hashed(name, "id") for name in ids if name in frame.columns]
    changed += [hashed("content", "content")] if "content" in frame.columns else []
    frame = frame.with_columns(changed).drop("position", strict=False).rename(ids, strict=False)
    write_parquet_atomic(frame, target)


def counted(said: Any, positions: Collection[int]) -> Any:
    """An assessment with the records counted from 0: their positions are their ids where rows are only numbered.

    Args:
        said: of it, JSON.
        positions: of the records among the training rows.
    """
    if not isinstance(said, dict):
        return said
    numbers = {str(position): str(number) for number, position in enumerate(sorted(positions))}
    found = {}
    for name, value in said.items():
        if name == "value_by_index":
            value = {numbers.get(index, index): entry for index, entry in value.items()}
        elif name != "holdout" and not name.startswith("retain_"):  # those are of other rows
            value = counted(value, positions)
        found[name] = value
    return found


def carry_out(run: EndingRun, journal: Journal) -> Journal:
    """Remove what is left of the records, wherever the purge was interrupted; says in the journal what it came to."""
    if journal.done:
        return journal
    home, trace = run.config.workspace, Path(journal.trace)
    said = (read_json(trace / MANIFEST) or {})["values"]
    run.screen.begin("purge")
    with workspace.alone(run.held, run.screen.line):
        exclusions.exclude(home / PURGED, journal.digest, said["contents"])
        tally = Tally(journal.removed, lambda: journal.write(home))
        if journal.index is not None:
            _from_index(journal.index, said["ids"], run, tally)
        registered = run.tracker.registered()
        models = [path for path in home.rglob("*.ckpt") if any(place in path.parents for place in registered)]
        known = [path for path in models if digest_file(path) in journal.models]
        keep = {*map(Path, journal.keep), *known, *(Path(journal.folder, name) for name in journal.results)}
        apart = of_other_data(home, Path(journal.folder))
        files, traces = naming(home, said["ids"], apart), Traces.load(trace)
        if not traces.columns:  # they go by positions, which are the ids there
            files += [file for file in home.rglob(ASSESSMENT) if not apart(file)]
        if TOKENIZER in journal.results:
            files += tokenizers(home, Path(journal.folder, TOKENIZER), apart)
        ledger = ledger_of(home)  # it forgets the ids when it closes the requests
        swept = sweep(
            home,
            Search(traces, apart),
            stages=journal.stages,
            data=journal.data,
            models=journal.models,
            files=files,
            keep=keep,
            skip={trace, home / FOLDER, *(ledger.with_name(f"{ledger.name}{end}") for end in ("", "-wal", "-shm"))},
            tally=tally,
        )
        references = [one["hash"] for one in journal.evidence["references"]]
        others = _others(home, keep, {digest_file(Path(journal.folder, MODEL)), *references})
    run.screen.end("done")
    caveats = [GIVEN, PREFECT]
    caveats += [APART] * (not traces.columns)
    caveats += [MODEL_KEPT] * bool(journal.keep) + [REGISTERED] * bool(known)
    caveats += [OTHERS.format(others)] * bool(others)
    caveats += [VOCABULARY] * (TOKENIZER in journal.results)
    caveats += [ELSEWHERE] * (not run.tracker.inside(home))
    caveats += [LEFT.format(", ".join(swept.left))] * bool(swept.left)
    done = {INDEX_ROWS: tally.total(INDEX_ROWS), **vars(swept)}
    told = journal.evidence | {"caveats": [*journal.evidence["caveats"], *caveats], "purge": done}
    return replace(journal, done=done, evidence=told).write(home)


def content_of(journal: Journal) -> Evidence:
    """What the evidence says after the purge; of a journal of an earlier version without the rows that stay, which it names."""
    collateral = [one for one in journal.evidence["collateral"] if "record" in one]
    return TypeAdapter(Evidence).validate_python(journal.evidence | {"collateral": collateral})


def forget(journal: Journal) -> None:
    """Remove what was searched for, in the clear."""
    workspace.remove_stage(Path(journal.trace))


def _others(home: Path, keep: Collection[Path], own: Collection[str]) -> int:
    """How many checkpoints are left in a workspace, but for some files and the copies of a run's own models (sha256)."""
    left = (path for path in home.rglob("*.ckpt") if path.is_file() and path not in keep)
    return sum(digest_file(path) not in own for path in left)


def _from_index(path: str, ids: list[Any], run: EndingRun, tally: Tally) -> None:
    """Remove the rows of the records from an index of the user's."""
    import lorif_core

    with store_errors():
        known, gone = lorif_core.FactorStore.open(checkout(path)).ids(), set(ids)
        tally.note(INDEX_ROWS, path, sum(one in gone for one in known))
        limit = run.config.index.memory_limit
        lorif_core.purge(path, ids, progress=run.screen.progress, memory_limit=limit)
