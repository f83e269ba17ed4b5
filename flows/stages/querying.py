"""Stage query: the training rows that explain validation rows."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader, Subset

from flows.stages.common import Arguments, Output, Progress, open_labelled
from flows.stages.indexing import open_index


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """The strongest training rows for the validation rows at ``rows``.

    Returns:
        ``values``: ``queries``, one entry a row: ``row``, ``example_id``, ``label`` and ``neighbours`` (``example_id``,
        ``label``, ``score``; positive = supporter), strongest first.
    """
    data = open_labelled(arguments)
    attributor, _ = open_index(arguments, data, progress)
    rows = arguments["rows"]
    loader = DataLoader(Subset(data.validation_dataset, rows), batch_size=arguments["index"]["batch_size"])
    found = attributor.top_k(loader, arguments["top"], largest=arguments["largest"])
    validation = data.examples.filter(split="validation")
    names, labels = data.train_ids(), data.train_labels()
    queries = []
    for number, row in enumerate(rows):
        neighbours = [
            {"example_id": names[i], "label": data.classes[labels[i]], "score": score}
            for i, score in zip(found.indices[number].tolist(), found.scores[number].tolist(), strict=True)
        ]
        asked = validation.row(row, named=True)
        queries.append(
            {"row": row, "example_id": asked["example_id"], "label": asked["label"], "neighbours": neighbours}
        )
    return Output({"queries": queries})
