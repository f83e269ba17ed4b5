"""A tiny Hugging Face encoder and its tokenizer, written to a folder: from texts to an index, and all that can be wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning import LightningModule

from curation.data import CuratedData, build_data
from curation.errors import DataError, ModelError
from curation.mislabel import forward_pass
from curation.models import TextClassifier, build_model, load_model
from curation.training import TrainOptions, train
from lorif_core import Classification, GradDot, LoRIF

GOOD, BAD = ("good", "great", "lovely"), ("bad", "poor", "awful")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "with", "actors", "story", *GOOD, *BAD)
TEXT, DEFAULTS = "curation.models.TextClassifier", {"num_classes": 2}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """No network; and no other test sees that transformers was told so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``bert`` (encoder and tokenizer) and ``texts.jsonl``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("huggingface")
    words = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "bert")
    config = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(**config, intermediate_size=32, max_position_embeddings=12)).save_pretrained(folder / "bert")

    random = np.random.default_rng(0)
    rows = [
        {"text": f"a {random.choice(said)} film with {random.choice(WORDS[6:9])} unknown", "mood": mood}
        for said, mood in ((GOOD, "+"), (BAD, "-"))
        for _ in range(40)
    ]
    pl.DataFrame(rows).write_ndjson(folder / "texts.jsonl")
    return folder


def texts(folder: Path, **options: Any) -> CuratedData:
    named = {"path": "texts.jsonl", "label": "mood", "text": "text", "max_tokens": 8, "tokenizer": "bert", **options}
    return build_data("curation.data.TableData", named, folder)


def encoder(folder: Path, data: CuratedData | None = None, **options: Any) -> LightningModule:
    known = DEFAULTS if data is None else data.model_defaults()
    return build_model(TEXT, {"encoder": "bert", **options}, known, root=folder)


def test_from_texts_to_an_index(saved: Path, tmp_path: Path) -> None:
    data = texts(saved, batch_size=16)
    assert data.model_defaults() == {
        "input_shape": (8,),
        "num_classes": 2,
        "vocab_buckets": len(WORDS),
        "pad_id": 0,
        "max_tokens": 8,
        "tokenizer": str(saved / "bert"),
    }
    ids = data.train_dataset[0][0]
    assert [WORDS[token] for token in ids if token] == ["[CLS]", *data.show(0).text.split()[:-1], "[UNK]", "[SEP]"]

    model = encoder(saved, data, lr=1e-2)
    result = train(model, data, TrainOptions(6, progress=False), tmp_path / "run")
    assert result.metrics["val_accuracy"] == 1.0
    loaded = load_model(TEXT, result.checkpoint, defaults=data.model_defaults())
    inputs, _ = next(iter(data.val_dataloader()))
    torch.testing.assert_close(loaded(inputs), model(inputs))

    seen = forward_pass(loaded, data.ordered_dataloader())
    assert seen.features.shape == (len(data.train_dataset), 16) and seen.names[-1] == "head"
    attributor = LoRIF(loaded, Classification(), projection_factor=2, curvature_rank=16)
    attributor.fit(data.ordered_dataloader(batch_size=20), tmp_path / "index", ids=data.train_ids())
    assert attributor.store.manifest.coverage == 1.0
    scores = attributor.score(data.val_dataloader())
    assert scores.shape == (len(data.validation_dataset), len(data.train_dataset)) and scores.isfinite().all()
    same = torch.from_numpy(data.validation_dataset.codes)[:, None] == torch.from_numpy(data.train_labels())[None, :]
    assert scores[same].mean() > 0 > scores[~same].mean()
    assert (attributor.self_influence() >= 0).all()


def test_gradients_of_an_encoder_are_those_of_a_loop_over_its_rows(saved: Path, tmp_path: Path) -> None:
    model, data = encoder(saved).eval(), texts(saved)
    rows = [data.train_dataset[row] for row in (0, 1, 40, 41)]
    loader = [(torch.stack([ids for ids, _ in rows]), torch.tensor([code for _, code in rows]))]
    attributor = GradDot(model, Classification(), projection="identity", factor_rank=1000, bits=32)
    found = attributor.fit(loader, tmp_path / "index").score(loader).double()
    losses = [torch.nn.functional.cross_entropy(model(ids[None]), torch.tensor([code])) for ids, code in rows]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    flat = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]).double()
    torch.testing.assert_close(found, flat @ flat.T, rtol=1e-5, atol=1e-7)


def test_the_states_of_each_row_are_averaged_without_its_padding(saved: Path) -> None:
    model = encoder(saved).eval()
    ids = torch.tensor([[2, 6, 7, 0], [2, 6, 0, 0]])
    states = [model.encoder(input_ids=row[row != 0][None]).last_hidden_state.mean(1) for row in ids]
    torch.testing.assert_close(model(ids), model.head(torch.cat(states)))
    assert [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1] is model.head


def test_the_digest_does_not_depend_on_where_the_tokenizer_lies(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "bert", tmp_path / "moved")
    assert texts(saved, tokenizer=str(tmp_path / "moved")).digest() == texts(saved).digest()
    assert texts(saved, tokenizer="hashed").digest() != texts(saved).digest()


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ({"tokenizer": "hashed"}, {}, "ids were made by 'hashed': set `tokenizer: .*bert` in the data's init_args"),
        ({}, {"encoder": "hashed"}, "encoder is 'hashed', but the ids were made by .*set `tokenizer: hashed`"),
        ({}, {"encoder": "org/other"}, "encoder is 'org/other', but the ids were made by '.*bert'"),
        ({"max_tokens": 13}, {}, "max_tokens is 13 in the data, the encoder takes 12 at most"),
        ({}, {"pad_id": 3}, "the padding id is 3 in the data, 0 in the encoder"),
        ({}, {"vocab_buckets": 99}, "the data module makes 99 different ids, the encoder knows 15"),
    ],
)
def test_ids_that_are_not_the_encoders_are_refused(saved: Path, data: dict, model: dict, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        encoder(saved, texts(saved, **data), **model)


def test_a_tokenizer_of_another_name_may_be_declared_the_same(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "bert", tmp_path / "copy")
    data = texts(saved, tokenizer=str(tmp_path / "copy"))
    with pytest.raises(ModelError, match="`tokenizer: null` in the model's where both make the same ids"):
        encoder(saved, data)
    assert isinstance(encoder(saved, data, tokenizer=None), TextClassifier)


def copy(saved: Path, folder: Path, file: str = "config.json", **entries: Any) -> None:
    """A copy of encoder and tokenizer, called ``bert``, with other entries in one of its files."""
    shutil.copytree(saved / "bert", folder / "bert", dirs_exist_ok=True)
    path = folder / "bert" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_encoders_that_cannot_be_loaded(saved: Path, tmp_path: Path) -> None:
    def refusal(name: str, folder: Path = tmp_path) -> str:
        with pytest.raises(ModelError) as error:
            encoder(folder, encoder=name)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "encoder '/nowhere/bert': there is no such folder" in refusal("/nowhere/bert")
    assert f"encoder '{tmp_path}/gone': there is no such folder" in refusal("./gone")
    assert "no Hugging Face encoder could be loaded from 'org/name': " in refusal("org/name")
    copy(saved, tmp_path, hidden_size=32)
    assert f"no Hugging Face encoder could be loaded from '{tmp_path}/bert'" in refusal("bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"no tensors at all")
    assert "no Hugging Face encoder could be loaded" in refusal("bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refusal("bert")


def test_models_that_are_no_encoders(saved: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="is a T5Model, which is no text encoder"):
        encoder(tmp_path, encoder="t5")
    copy(saved, tmp_path, pad_token_id=None)
    with pytest.raises(ModelError, match="the encoder names no padding id; give pad_id"):
        encoder(tmp_path)


def test_tokenizers_that_cannot_be_used(saved: Path, tmp_path: Path) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(DataError) as error:
            texts(tmp_path, **options)
        (problem,) = error.value.problems
        assert problem.startswith(f"{tmp_path}/texts.jsonl: column 'text': ")
        return problem

    shutil.copy(saved / "texts.jsonl", tmp_path)
    assert "there is no such folder" in refusal(tokenizer="./gone")
    assert "no Hugging Face tokenizer could be loaded from 'org/name'" in refusal(tokenizer="org/name")
    copy(saved, tmp_path)
    for file in (tmp_path / "bert").glob("tokenizer*"):
        file.unlink()
    assert "knows no word of these texts" in refusal()
    copy(saved, tmp_path, "tokenizer_config.json", model_max_length=6, pad_token=None)
    with pytest.raises(DataError) as error:
        texts(tmp_path)
    assert "has no padding token" in error.value.problems[0]
    assert "max_tokens is 8, the tokenizer" in error.value.problems[1] and "makes 6 at most" in error.value.problems[1]


def test_without_transformers_the_message_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "lorif-curation\[llm\]"'):
        encoder(saved)
    with pytest.raises(DataError, match=r'pip install "lorif-curation\[llm\]"'):
        texts(saved)
