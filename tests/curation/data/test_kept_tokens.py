"""What is left of a learnt tokenizer once some rows are gone: all that the others need, and no word of theirs alone."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models

from curation.data.build import build_data
from curation.data.kept_tokens import keeping, learnt, texts_of
from curation.data.people import People
from curation.data.text_tokens import TextTokenizer, read_tokenizer
from curation.errors import DataError
from curation.models.build import build_model, load_model
from curation.models.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def data() -> People:
    return People(n_people=8, n_holdout=1)


@pytest.fixture(scope="module")
def left(data: People) -> People:
    gone = [one for one in data.train_ids() if one.startswith("person-01/")]
    return data.edited(pl.DataFrame({"example_id": gone, "decision": ["drop"] * len(gone)}))


@pytest.fixture(scope="module")
def file(left: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    keeping(left.contents.tokenizer, texts_of(left)).save(path)
    return path


def test_no_token_is_left_that_only_a_removed_row_needs(data: People, left: People, file: Path) -> None:
    said, stays = json.loads(file.read_text()), " ".join(texts_of(left))
    (name,) = set(data.examples.filter(pl.col("example_id").str.starts_with("person-01/"))["subject"])
    first, last = name.split()
    before = json.loads(data.contents.tokenizer.to_json())["model"]
    assert first not in stays and last not in stays, "nobody else is called so"
    assert {f"\u0120{first}", f"\u0120{last}"} <= before["vocab"].keys() and first not in file.read_text()
    assert last not in file.read_text() and len(said["model"]["merges"]) < len(before["merges"])
    for token, number in said["model"]["vocab"].items():
        words = data.contents.tokenizer.text([number])
        assert token.startswith("<") or len(token) == 1 or words in stays, token
    assert sorted(said["model"]["vocab"].values()) == sorted(before["vocab"].values()), "ids stay"


def test_it_is_the_same_to_the_rows_that_stay_and_to_the_model(data: People, left: People, file: Path) -> None:
    again = People(n_people=8, n_holdout=1, tokenizer=str(file))
    for row, one in enumerate(again.examples["example_id"]):
        if not one.startswith("person-01/"):
            assert again.contents.rows[row]["input_ids"].tolist() == data.contents.rows[row]["input_ids"].tolist()
    gone = pl.DataFrame({"example_id": list(set(data.train_ids()) - set(left.train_ids())), "decision": "drop"})
    assert again.edited(gone).digest() == left.digest() and again.model_defaults() == data.model_defaults()
    checkpoint = file.with_name("model.ckpt")
    model = build_model("curation.models.TinyGPT", {"width": 8, "heads": 2, "depth": 1}, data.model_defaults())
    write_checkpoint({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, checkpoint)
    loaded = load_model("curation.models.TinyGPT", checkpoint, {}, again.model_defaults())
    ids = torch.tensor([again.encode_prompt("Where was anybody born?")])
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert again.decode(again.contents.tokenizer.ids("Zo\u00eb \u4e2d")) == "Zo\u00eb \u4e2d", (
        "what it never saw is spelt in bytes"
    )


def test_rows_that_are_left_out_may_be_spelt_longer_than_a_row_can_be(data: People, left: People, file: Path) -> None:
    most = max(len(ids) for ids in data.contents.rows.tokens)
    options = {"n_people": 8, "n_holdout": 1, "tokenizer": str(file), "max_tokens": most}
    with pytest.raises(DataError, match=f"more than max_tokens .{most}. tokens in rows with ids 'person-01/"):
        People(**options)
    again = build_data(
        "curation.data.People", options, "", lambda rows, _: ~rows["example_id"].str.starts_with("person-01/")
    )
    assert again.train_ids() == left.train_ids() and again.contents.rows.digest() == left.contents.rows.digest()


def test_it_can_be_done_again_to_what_was_saved(left: People, file: Path) -> None:
    fewer = keeping(read_tokenizer(str(file)), list(texts_of(left))[:4])
    assert fewer.digest == left.contents.tokenizer.digest and fewer.to_json().count("<removed-") > 100


def test_only_what_was_learnt_from_data_is_taken_apart() -> None:
    assert learnt("bpe") and learnt("here/tokenizer.json") and not learnt("HuggingFaceTB/SmolLM2-135M")
    plain = Tokenizer(models.BPE({"<pad>": 0, "<end>": 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")]))
    with pytest.raises(DataError, match="expected a byte-level BPE as this tool learns"):
        keeping(TextTokenizer(plain, 1, 0), ["ab"])
