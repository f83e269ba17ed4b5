import torch

from curation.models import TextClassifier, build_model
from curation.training import TrainOptions, train
from tests.curation.models.toy import TensorData


def token_data() -> TensorData:
    """Texts of 3 to 12 tokens; token 7 makes class 1, token 8 class 0."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(9, 40, (200, 12), generator=random)
    codes = torch.arange(200) % 2
    ids[:, 0] = 8 - codes
    lengths = torch.randint(3, 13, (200, 1), generator=random)
    ids[torch.arange(12) >= lengths] = 0
    return TensorData((ids[:160], codes[:160]), (ids[160:], codes[160:]))


def test_hashed_is_the_mean_over_tokens_that_are_not_padding():
    model = TextClassifier(3, vocab_buckets=20, pad_id=4, dim=5)
    ids = torch.tensor([[3, 7, 7, 4], [1, 4, 4, 4], [4, 4, 4, 4]])
    table = model.encoder.weight
    expected = torch.stack([(table[3] + 2 * table[7]) / 3, table[1], torch.zeros(5)])
    torch.testing.assert_close(model(ids), model.head(expected))
    torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 6), value=4)), model(ids))


def test_padding_contributes_nothing_whatever_its_embedding():
    model = TextClassifier(3, vocab_buckets=20, pad_id=0, dim=5)
    ids = torch.tensor([[3, 7, 7, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    before = model(ids)
    with torch.no_grad():
        model.encoder.weight[0] = 1e6
    assert torch.equal(model(ids), before)
    model(ids).sum().backward()
    assert not model.encoder.weight.grad[0].any() and model.encoder.weight.grad[7].any()
    for row in ids:
        alone = row[row != 0][None]  # [1, T without padding]
        torch.testing.assert_close(model(alone)[0], model(ids)[(ids == row).all(dim=1)][0])


def test_hashed_learns(tmp_path):
    model = build_model(
        "curation.models.TextClassifier",
        {},
        {"num_classes": 2, "vocab_buckets": 40, "pad_id": 0, "tokenizer": "hashed"},
    )
    result = train(model, token_data(), TrainOptions(6), tmp_path)
    assert result.metrics["val_accuracy"] > 0.9
