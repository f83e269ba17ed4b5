"""Rows of the pool that are of the target or of an evaluation set, or nearly: they must not be trained on.

Else a gain on the target would be one of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from curation.errors import DataError
from curation.selection.content import Content
from curation.selection.duplicates import ALIKE, Alike
from curation.selection.exclusions import Exclusion
from curation.selection.near_texts import NearTexts
from curation.selection.similarity import most_similar


def contaminated(
    pool: Content,
    protected: Mapping[str, Content],
    alike: Alike = ALIKE,
    same_ids: bool = True,
) -> list[Exclusion]:
    """The pool's rows that are like a protected one; each once, in pool order.

    Args:
        pool: the rows that could be chosen.
        protected: rows that must not be, by what they are: "target", "evaluation".
        alike: from where on two rows are nearly the same.
        same_ids: rows with the id of a protected row are that row: where both come from one table.

    Raises:
        DataError: every row of the pool is; or pool and protected rows cannot be compared.
    """
    problems = [
        f"the pool has {what} and the {name} rows have none, or the other way round: give both or neither"
        for name, rows in protected.items()
        for what, a, b in (("texts", pool.texts, rows.texts), ("vectors", pool.vectors, rows.vectors))
        if (a is None) != (b is None)
    ]
    if problems:
        raise DataError(problems)
    found: dict[int, Exclusion] = {}
    for name, rows in protected.items():
        if not len(rows):
            continue
        for one in _like(pool, rows, name, alike, same_ids):
            found.setdefault(one.row, replace(one, of=name))
    if len(found) == len(pool):
        counts = Counter(one.of for one in found.values())
        of = " and ".join(f"{rows:,} of {name}" for name, rows in counts.items())
        raise DataError(
            [
                f"all {len(pool):,} rows of the pool are rows of the following, or nearly the same: {of}; there is nothing to "
                "choose from"
            ]
        )
    return [found[row] for row in sorted(found)]


def _like(pool: Content, rows: Content, name: str, alike: Alike, same_ids: bool) -> list[Exclusion]:
    """Of one kind of protected rows: the plainest reason of each row first."""
    found: list[Exclusion] = []
    ids: list[str | int] = list(rows.ids)
    if same_ids:
        own = set(ids)
        found += [Exclusion(i, f"is a row of {name}", pool.ids[i], 1.0) for i in range(len(pool)) if pool.ids[i] in own]
    digests: dict[str, str | int] = {}
    for digest, x in zip(rows.digests, ids, strict=True):
        digests.setdefault(digest, x)
    found += [
        Exclusion(i, f"holds exactly what a row of {name} does", digests[digest], 1.0)
        for i, digest in enumerate(pool.digests)
        if digest in digests
    ]
    if pool.texts is not None and alike.jaccard < 1:
        texts = NearTexts(alike.jaccard)
        for shingles in rows.shingles:
            texts.keep(shingles, texts.sketch(shingles))
        for i, shingles in enumerate(pool.shingles):
            if (other := texts.like(shingles, texts.sketch(shingles))) is not None:
                found.append(Exclusion(i, f"holds nearly the text of a row of {name}", ids[other[0]], other[1]))
    if pool.vectors is not None and rows.vectors is not None and alike.cosine < 1:
        places, cosines = most_similar(pool.vectors, rows.vectors)
        found += [
            Exclusion(int(i), f"has nearly the vector of a row of {name}", ids[places[i]], float(min(cosines[i], 1.0)))
            for i in np.flatnonzero(cosines >= alike.cosine)
        ]
    return found
