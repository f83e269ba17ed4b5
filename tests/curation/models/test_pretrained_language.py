"""A tiny Llama and its tokenizer in a folder: trained whole and by adapters, loaded without the folder, indexed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.data import People, Questions, build_data
from curation.errors import ModelError
from curation.models import HuggingFaceLanguageModel, answer_scores, build_model, generate, load_model
from curation.models.language import LanguageModel
from curation.training import TrainOptions, train
from lorif_core import CausalLM, LoRIF

MODEL = "curation.models.HuggingFaceLanguageModel"
PEOPLE = {"n_people": 2, "n_holdout": 1, "max_tokens": 80, "vocabulary": 320}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``llama``; no network while it is used."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("language")
    People(**PEOPLE).contents.tokenizer.save(folder / "tokenizer.json")
    named = {"tokenizer_file": str(folder / "tokenizer.json"), "eos_token": "<end>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(**named).save_pretrained(folder / "llama")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=320, max_position_embeddings=80, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield folder


@pytest.fixture(scope="module")
def people(folder: Path) -> Questions:
    return build_data("curation.data.People", {**PEOPLE, "tokenizer": "llama"}, folder)  # type: ignore[return-value]


def llama(folder: Path, people: Questions, **options: Any) -> LanguageModel:
    known = people.model_defaults()
    return build_model(MODEL, {"name": "llama", **options}, known, root=folder)  # type: ignore[return-value]


def test_its_own_tokenizer_makes_the_ids(people: Questions) -> None:
    trained = People(**PEOPLE)
    assert people.model_defaults() | {"tokenizer": 0} == trained.model_defaults() | {"tokenizer": 0}
    for row in range(5):
        assert torch.equal(people.train_dataset[row]["input_ids"], trained.train_dataset[row]["input_ids"])


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_trained_loaded_without_its_folder_and_indexed(
    folder: Path, people: Questions, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    shutil.copytree(folder / "llama", tmp_path / "llama")
    model = llama(tmp_path, people, lora=lora, lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = train(model, people, TrainOptions(2, progress=False), tmp_path / "run")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and (lora is None or all("lora" in name for name in changed))
    shutil.rmtree(tmp_path / "llama")
    loaded = load_model(
        MODEL, result.checkpoint, {"name": "llama", "lora": lora}, people.model_defaults(), root=tmp_path
    )
    batch = next(iter(people.ordered_dataloader()))
    torch.testing.assert_close(loaded(batch["input_ids"]), model(batch["input_ids"]), rtol=0, atol=0)

    attributor = LoRIF(loaded, CausalLM(), projection_factor=4, layers=["*lora*"] if lora else None)
    attributor.fit(people.ordered_dataloader(), tmp_path / "index", ids=people.train_ids())
    assert attributor.self_influence().shape == (14,)
    assert lora is not None or attributor.store.manifest.coverage == 1.0


def test_checkpointed_activations_give_the_same_gradients_and_can_be_indexed(
    folder: Path, people: Questions, tmp_path: Path
) -> None:
    batch = next(iter(people.ordered_dataloader()))
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = llama(folder, people, lora={"r": 2}, gradient_checkpointing=checkpointing).train()
        answer_scores(model, batch).loss.mean().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)
    index = LoRIF(model.eval(), CausalLM(), projection_factor=4, layers=["*lora*"])
    index.fit(people.ordered_dataloader(), tmp_path / "index")


def test_kept_keys_and_values_generate_what_running_everything_again_does(folder: Path, people: Questions) -> None:
    model, known = llama(folder, people).eval(), people.model_defaults()
    prompts = [people.encode_prompt(text) for text in people.examples["question"]]
    found = generate(model, prompts, 6, known["end_id"], known["pad_id"])
    with torch.no_grad():
        assert found == LanguageModel.continued(model, prompts, 6, known["end_id"], known["pad_id"])


def test_what_does_not_fit_is_told(
    folder: Path, people: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="the data makes 400 different ids, .* knows 320.*; max_tokens is 90"):
        HuggingFaceLanguageModel(str(folder / "llama"), vocab_size=400, max_tokens=90)
    with pytest.raises(ModelError, match="there is no such folder"):
        HuggingFaceLanguageModel(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="peft refused lora"):
        llama(folder, people, lora={"rank": 2})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="lora needs peft, which does not import"):
        llama(folder, people, lora={})
