"""Language models: the loss, what is measured, generation, training, checkpoints and the index of a small GPT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curation.data import People
from curation.errors import ModelError
from curation.models import TinyGPT, answer_scores, build_model, evaluate_answers, generate, load_model
from curation.models.language import LanguageModel
from curation.training import TrainOptions, train
from lorif_core import CausalLM, GradDot, LoRIF
from lorif_core.objectives import IGNORED
from tests.curation.models.toy import blobs

torch.set_num_threads(1)
GPT = "curation.models.TinyGPT"
SMALL = {"width": 64, "heads": 2, "lr": 5e-3}


@pytest.fixture(scope="module")
def people() -> People:
    return People(n_people=2, n_holdout=1, vocabulary=400, max_tokens=80, batch_size=4)


def gpt(people: People, **options: float) -> LanguageModel:
    return build_model(GPT, {**SMALL, **options}, people.model_defaults(), seed=3)  # type: ignore[return-value]


def test_the_loss_is_each_rows_mean_over_its_answer_however_it_is_padded(people: People) -> None:
    model = gpt(people).eval()
    rows = [people.train_dataset[row] for row in range(5)]
    scores = answer_scores(model, people.collate(rows))
    for number, row in enumerate(rows):
        log_p = model(row["input_ids"][None])[0].double().log_softmax(-1)
        places = [t for t in range(len(row["labels"])) if row["labels"][t] != IGNORED]
        expected = sum(-log_p[t - 1, row["labels"][t]] for t in places) / len(places)
        torch.testing.assert_close(scores.loss[number].double(), expected, rtol=1e-5, atol=0)
    totals = CausalLM().loss(model, people.collate(rows))
    tokens = torch.tensor([int((row["labels"] != IGNORED).sum()) for row in rows])
    torch.testing.assert_close(totals / tokens, scores.loss)


def test_a_training_learns_answers_and_its_checkpoint_gives_them_again(people: People, tmp_path: Path) -> None:
    model = gpt(people)
    result = train(model, people, TrainOptions(35, progress=False), tmp_path)
    assert set(result.metrics) == {"train_loss", "val_exact", "val_exact_low", "val_exact_high", "val_loss", "val_n"}
    assert set(result.history[0]) == {"epoch", "train_loss", "val_loss", "val_exact"}
    assert result.metrics["val_exact"] > 0.9 and result.metrics["val_n"] == 14
    loaded = load_model(GPT, result.checkpoint, defaults=people.model_defaults())
    questions = people.examples.filter(split="train")
    known = people.model_defaults()
    prompts = [people.encode_prompt(text) for text in questions["question"]]
    found = generate(loaded, prompts, 30, known["end_id"], known["pad_id"], batch_size=8)
    said = [people.decode(ids) == answer for ids, answer in zip(found, questions["answer"], strict=True)]
    measured = evaluate_answers(loaded, people.ordered_dataloader())
    assert sum(said) / len(said) == measured["exact"] == result.metrics["val_exact"]
    assert evaluate_answers(loaded, people.ordered_dataloader("holdout"))["exact"] == 0.0

    with pytest.raises(ModelError, match="was trained on other data: tokenizer is"):
        load_model(GPT, result.checkpoint, defaults=People(1, 0, vocabulary=400, max_tokens=80).model_defaults())


def test_generation_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was(people: People) -> None:
    model, known = gpt(people).train(), people.model_defaults()
    prompts = [people.encode_prompt(text) for text in people.examples["question"]]
    together = generate(model, prompts, 7, known["end_id"], known["pad_id"])
    assert model.training and not any(known["end_id"] in ids for ids in together)
    for prompt, ids in zip(prompts, together, strict=True):
        expected = list(prompt)
        while len(expected) < len(prompt) + 7:
            following = int(model(torch.tensor([expected]))[0, -1].argmax())
            if following == known["end_id"]:
                break
            expected.append(following)
        assert ids == expected[len(prompt) :]
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate(model, [[1], []], 3, 1, 0)


def test_every_parameter_of_the_small_gpt_is_indexed_and_its_scores_are_those_of_a_loop(
    people: People, tmp_path: Path
) -> None:
    model = gpt(people, depth=1, width=16).eval()
    rows = [people.train_dataset[row] for row in range(4)]
    loader = [people.collate(rows)]
    attributor = GradDot(model, CausalLM(), projection="identity", factor_rank=1000, bits=32)
    found = attributor.fit(loader, tmp_path / "dots").score(loader).double()
    losses = [CausalLM().loss(model, people.collate([row])).sum() for row in rows]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    flat = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]).double()
    torch.testing.assert_close(found, flat @ flat.T, rtol=1e-4, atol=1e-5)

    index = LoRIF(model, CausalLM(), projection_factor=4, curvature_rank=16)
    index.fit(people.ordered_dataloader(), tmp_path / "index", ids=people.train_ids())
    assert index.store.manifest.coverage == 1.0 and not index.store.manifest.left_out
    assert index.score(people.ordered_dataloader("holdout")).shape == (7, 14)


def test_models_and_data_of_different_kinds_are_refused(people: People, tmp_path: Path) -> None:
    classifier = build_model("curation.models.TabularClassifier", {}, {"input_shape": (4,), "num_classes": 2})
    with pytest.raises(ModelError, match="fails on token ids"):
        train(classifier, people, TrainOptions(1, progress=False), tmp_path / "a")
    with pytest.raises(ModelError, match="fails on the data"):
        train(gpt(people), blobs(), TrainOptions(1, progress=False), tmp_path / "b")
    with pytest.raises(ModelError, match="fails on token ids"):
        train(
            TinyGPT(10_000, 80, width=8, heads=2).__class__(300, 80, width=8, heads=2),
            people,
            TrainOptions(1),
            tmp_path / "c",
        )


def test_all_problems_of_the_arguments_are_told_at_once() -> None:
    with pytest.raises(ModelError, match="depth must be at least 1, got 0; lr must be positive, got -1.0; schedule"):
        TinyGPT(10, 10, depth=0, lr=-1, schedule="never")
    with pytest.raises(ModelError, match="width must be a multiple of heads"):
        TinyGPT(10, 10, width=6, heads=4)
    with pytest.raises(ValueError, match="rows of 11 tokens, max_tokens is 10"):
        TinyGPT(10, 10, width=8)(torch.zeros(1, 11, dtype=torch.int64))
