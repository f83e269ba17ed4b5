"""Pictures: a small convolutional network, or a perceptron on the pixels.

Axes: B rows, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from curation.models.base import Classifier, dense, width_problems

ARCHITECTURES = ("cnn", "mlp")
# Strided convolutions are stacked until no side is longer than this, whatever the picture's size.
LARGEST_MAP = 8


class ImageClassifier(Classifier):
    """Classifies images of one size.

    ``cnn``: a 3x3 convolution, then 3x3 convolutions of stride 2 that double the channels (up to eight times the
    first) until the map is at most 8x8, at least one of them; ReLU after each. ``mlp``: the pixels themselves. Both
    end in the ``hidden`` layers and the head.

    Args:
        input_shape: (C, H, W) of every image; float32, best in [0, 1].
        num_classes: K.
        arch: ``"cnn"`` or ``"mlp"``.
        channels: output channels of the first convolution.
        hidden: widths of the layers before the head; the last one is the width of the features label errors are found in.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        schedule: ``"constant"`` or ``"cosine"``.

    Raises:
        ModelError: an argument is out of its range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        arch: str = "cnn",
        channels: int = 16,
        hidden: Sequence[int] = (128,),
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        schedule: str = "constant",
    ) -> None:
        input_shape, hidden, num_classes = [int(n) for n in input_shape], [int(n) for n in hidden], int(num_classes)
        problems = width_problems(hidden)
        if len(input_shape) != 3 or min(input_shape) < 1:
            problems.append(f"input_shape must be (channels, height, width), got {tuple(input_shape)}")
        if arch not in ARCHITECTURES:
            problems.append(f"arch must be one of {', '.join(ARCHITECTURES)}; got {arch!r}")
        if channels < 1:
            problems.append(f"channels must be at least 1, got {channels}")
        super().__init__(num_classes, lr, weight_decay, schedule, problems)
        self.save_hyperparameters(ignore=["problems"])

        depth, height, width = input_shape
        layers: list[nn.Module] = []
        if arch == "cnn":
            layers = [nn.Conv2d(depth, channels, 3, padding=1), nn.ReLU()]
            depth = channels
            while len(layers) == 2 or max(height, width) > LARGEST_MAP:
                wider = min(2 * depth, 8 * channels)
                layers += [nn.Conv2d(depth, wider, 3, stride=2, padding=1), nn.ReLU()]
                depth, height, width = wider, (height + 1) // 2, (width + 1) // 2
        self.features = nn.Sequential(*layers, nn.Flatten(), *dense(depth * height * width, hidden))
        self.head = nn.Linear(hidden[-1] if hidden else depth * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of ``images`` [B, C, H, W] float32."""
        logits: Tensor = self.head(self.features(images))
        return logits
