"""A small convolutional classifier, for features in which pictures are compared.

Frechet distances in the features of a network trained on the data at hand say more about small
grayscale pictures than those of a network trained on photographs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, relu

from flowmaps.errors import CheckpointError, DataError, ShapeError, TrainingError

FEATURES = 64
_WIDTHS = ((24, 1), (48, 2), (64, 1), (64, 2))  # output channels and stride of each convolution
_FORMAT = "flowmaps.classifier.1"


class Labelled(Protocol):
    """What `fit_classifier` needs of a data set; any `flowmaps.data.Data` with classes is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) in [-1, 1] and labels (B,) of the rows `index`."""
        ...


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return cast("nn.Linear", nn.utils.skip_init(nn.Linear, inputs, outputs))


@final
class Classifier(nn.Module):
    """Four convolutions, a 2 x 2 average, a layer of 64 features, and the logits.

    Images of any size from 8 x 8 go in; with one channel and ten classes it has 92 594 parameters.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        seed: Names the initial weights (He et al. 2015, arXiv:1502.01852, eq. 10).
    """

    def __init__(self, channels: int, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        sizes = (channels, *(width for width, _ in _WIDTHS))
        # skip_init: torch's own initialisation would draw from the global generator
        self.convolutions = nn.ModuleList(
            nn.utils.skip_init(nn.Conv2d, sizes[i], width, 3, stride, 1, bias=False)
            for i, (width, stride) in enumerate(_WIDTHS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width, _ in _WIDTHS)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = _linear(4 * sizes[-1], FEATURES)
        self.logits = _linear(FEATURES, classes)
        self._initialise(Generator().manual_seed(seed))

    def _initialise(self, generator: Generator) -> None:
        for weight in (p for p in self.parameters() if p.ndim > 1):
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.logits.bias)

    def features(self, x: Tensor) -> Tensor:
        """The layer before the logits.

        Args:
            x: Images (B, C, H, W) in [-1, 1], H and W at least 8.

        Returns:
            Features (B, 64), non-negative, float32 outside autocast.

        Raises:
            ShapeError: If `x` has another number of axes or channels, or is too small.
        """
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 8:
            raise ShapeError(
                f"expected images (B, {self.channels}, H, W) with H, W >= 8; got "
                f"{tuple(x.shape)}; use a classifier trained on such images"
            )
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = relu(norm(convolution(x)))
        return relu(self.hidden(self.pool(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        return self.logits(self.features(x))


def fit_classifier(
    data: Labelled,
    *,
    steps: int,
    batch: int = 256,
    rate: float = 4e-3,
    seed: int = 0,
    bf16: bool = False,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Classifier:
    """A classifier trained by AdamW under a one-cycle rate, returned in evaluation mode.

    Args:
        data: Images with labels.
        steps: Number of updates.
        batch: Images per update, drawn with replacement.
        rate: Peak learning rate; AdamW's weight decay is 0.05.
        seed: Names initial weights and draws; equal seeds on one machine give equal weights.
        bf16: Run convolutions in bfloat16: several times faster where the processor has it.
        report: Called after every update with its number and loss.

    Raises:
        DataError: If `data` has no classes.
        TrainingError: If a loss is not finite.
    """
    if not data.classes:
        raise DataError("expected data with classes; got none; a classifier needs labels")
    net = Classifier(data.shape[0], len(data.classes), seed=seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    generator = Generator().manual_seed(seed)
    for step in range(steps):
        x, labels = data.batch(torch.randint(len(data), (batch,), generator=generator))
        loss = _loss(net, x, cast("Tensor", labels), bf16)
        if not loss.isfinite():
            raise TrainingError(
                f"expected a finite loss; got {loss.item()} at step {step}; lower the rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    return net.eval()


def _loss(net: Classifier, x: Tensor, labels: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(x.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), labels)


@torch.no_grad()
def accuracy(net: Classifier, data: Labelled, *, batch: int = 500) -> float:
    """The fraction of `data` that the classifier names rightly, in [0, 1]."""
    right = 0
    for rows in torch.arange(len(data)).split(batch):
        x, labels = data.batch(rows)
        right += int((net(x).argmax(1) == labels).sum())
    return right / len(data)


def save_classifier(path: Path, net: Classifier, **about: str) -> None:
    """Weights and shape in one safetensors file; `about` goes into its metadata."""
    metadata = {"format": _FORMAT, "channels": str(net.channels), "classes": str(net.classes)}
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(state, path, metadata | {"about": json.dumps(about)})


def load_classifier(path: Path) -> Classifier:
    """The classifier that `save_classifier` stored, in evaluation mode.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = cast("dict[str, str]", file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected a classifier in safetensors; got '{error}'; store it again"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected format {_FORMAT}; got {metadata.get('format')}; "
            "store it with save_classifier"
        )
    net = Classifier(int(metadata["channels"]), int(metadata["classes"]))
    net.load_state_dict(state)
    return net.eval()
