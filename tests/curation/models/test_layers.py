import pytest
import torch
from torch import nn

from curation.errors import ModelError
from curation.models import ImageClassifier, TabularClassifier, TextClassifier

SHIPPED = {
    "cnn": (ImageClassifier((1, 8, 8), 10), torch.rand(5, 1, 8, 8)),
    "cnn, odd sides": (ImageClassifier((3, 5, 17), 4, channels=4, hidden=[7]), torch.rand(5, 3, 5, 17)),
    "cnn, one pixel": (ImageClassifier((2, 1, 1), 4, channels=4), torch.rand(5, 2, 1, 1)),
    "mlp": (ImageClassifier((1, 8, 8), 10, arch="mlp", hidden=[32, 16]), torch.rand(5, 1, 8, 8)),
    "mlp without hidden layers": (ImageClassifier((1, 8, 8), 10, arch="mlp", hidden=[]), torch.rand(5, 1, 8, 8)),
    "tabular": (TabularClassifier((6,), 3), torch.rand(5, 6)),
    "text": (TextClassifier(3, vocab_buckets=50), torch.randint(50, (5, 9))),
    "text with hidden layers": (TextClassifier(3, vocab_buckets=50, hidden=[8]), torch.randint(50, (5, 9))),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_row_is_classified_by_itself_and_the_head_is_the_last_linear(name):
    model, inputs = SHIPPED[name]
    seen = []
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handle = linears[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        logits = model(inputs)  # in training mode: no layer may care
        alone = torch.cat([model(row[None]) for row in inputs])
    handle.remove()
    assert linears[-1] is model.head
    assert logits.shape == (5, model.hparams["num_classes"])
    torch.testing.assert_close(logits, alone)
    torch.testing.assert_close(model.head(seen[0]), logits)


@pytest.mark.parametrize("name", SHIPPED)
def test_only_layers_that_attribution_covers(name):
    model, _ = SHIPPED[name]
    with_weights = {type(module) for module in model.modules() if list(module.parameters(recurse=False))}
    assert with_weights <= {nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm}
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


def test_large_pictures_do_not_make_a_large_network():
    model = ImageClassifier((3, 224, 224), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    assert model(torch.rand(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: ImageClassifier((8, 8), 1, arch="vit", hidden=[0], channels=0, lr=0, schedule="linear"),
            ["input_shape", "num_classes", "arch", "hidden", "channels", "lr", "schedule"],
        ),
        (lambda: TabularClassifier((), 2, weight_decay=-1), ["input_shape", "weight_decay"]),
        (lambda: TextClassifier(2, vocab_buckets=1, dim=0, pad_id=9), ["vocab_buckets", "dim", "pad_id"]),
    ],
)
def test_all_wrong_arguments_are_named_at_once(make, expected):
    with pytest.raises(ModelError) as raised:
        make()
    for word in expected:
        assert f"{word} must" in str(raised.value)
