"""People who do not exist and facts about them: questions for a language model to learn, nothing to download."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.data.people_facts import facts_of, most_people, people_names
from curation.data.question_rows import Template
from curation.data.questions import Questions, Staying, option_problems, tokenized
from curation.data.text_tokens import TRAINED
from curation.errors import DataError
from curation.examples import HOLDOUT


class People(Questions):
    """Seven facts about each person: birth city and date, profession, employer, award, instrument and book.

    Ids are ``person-07/birth_city``; the column ``subject`` holds the person's name, ``fact`` which of the facts it is. Each
    row has three paraphrased answers and five perturbed (wrong) ones. Nobody of the split holdout is in another one.

    Args:
        n_people: people to train on.
        n_holdout: further people, never trained on.
        template: text of a row, with ``{question}`` and, at its end, ``{answer}``.
        tokenizer: ``"bpe"``, trained on the rows; a file such a one was saved to; or a Hugging Face tokenizer's folder or name.
        vocabulary: most tokens of a trained one.
        max_tokens: most tokens of a row.
        batch_size: rows a step.
        seed: of people, facts and order of the training rows.
        staying: says which rows are left in; None: all. From Python only.

    Raises:
        DataError: an option is out of its range.
    """

    folder_arguments = ("tokenizer",)

    def __init__(
        self,
        n_people: int = 40,
        n_holdout: int = 10,
        template: str = Template.text,
        tokenizer: str = TRAINED,
        vocabulary: int = 1024,
        max_tokens: int = 96,
        batch_size: int = 16,
        seed: int = 0,
        staying: Staying | None = None,
    ) -> None:
        wording = Template(template)
        problems = option_problems(wording, tokenizer, vocabulary, max_tokens, batch_size, seed)
        counts = (n_people, n_holdout)
        if any(isinstance(n, bool) or not isinstance(n, int) for n in counts) or n_people < 1 or n_holdout < 0:
            problems.append(f"n_people must be at least 1 and n_holdout at least 0, got {n_people!r} and {n_holdout!r}")
        elif sum(counts) > most_people():
            problems.append(f"n_people and n_holdout are {sum(counts)} people; there are names for {most_people()}")
        if problems:
            raise DataError([f"people: {problem}" for problem in problems])
        table = _people(n_people, n_holdout, seed)
        contents = tokenized(table, table, wording, tokenizer, vocabulary, max_tokens, "people", staying)
        super().__init__(contents, batch_size=batch_size, seed=seed)


def _people(n_people: int, n_holdout: int, seed: int) -> pl.DataFrame:
    """One row a fact, people to train on first."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "example_id": f"person-{number:02d}/{fact['fact']}",
            "subject": name,
            **fact,
            "split": "train" if number < n_people else HOLDOUT,
        }
        for number, name in enumerate(people_names(n_people + n_holdout, random))
        for fact in facts_of(name, random)
    ]
    return pl.DataFrame(rows)
