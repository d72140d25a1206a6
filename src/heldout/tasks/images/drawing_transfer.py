"""Fine-tuning of a really pretrained network on drawings of three styles, to be judged on the fourth and on the rest.

The lower part of EfficientNet-Lite0 stays as ImageNet made it, and its outputs are computed once and kept; what is
tuned is the upper part, from stage 6 on, behind a linear probe.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.method import evaluating
from heldout.nn import cached_features, efficientnet_lite0
from heldout.tasks.images.drawing_features import drawing_features
from heldout.tasks.images.drawings import DRAWING_STYLES, Drawings, drawings, split_drawings

_SIZE, _ENTRANCE, _OTHER_THINGS = 96, "stage6", 160
Examples = tuple[Tensor, Tensor]


class DrawingTransfer(NamedTuple):
    """What is to be learned, and what not to be forgotten; inputs are ``(n, 112, 6, 6)``, outputs of the lower part.

    Attributes:
        train, val: inputs and the 12 classes of things in three styles; other things in ``val``.
        source_test: again other things, in the three styles.
        target: the same things as in ``source_test``, in the fourth style.
        others_val, others_test: inputs ``(4, things, 112, 6, 6)`` of things outside of the classes, in four styles.
        network: the upper part with a linear probe on ``train`` as its ``head``; BatchNorm statistics stay fixed.
        held_out: number of the fourth style.
    """

    train: Examples
    val: Examples
    source_test: Examples
    target: Examples
    others_val: Tensor
    others_test: Tensor
    network: nn.Sequential
    held_out: int


def drawing_transfer(held_out: int, *, seed: int = 0) -> DrawingTransfer:
    """Returns a problem of transfer from ImageNet to drawings: three styles to learn, the fourth to generalise to.

    Args:
        held_out: number of the style that is not trained on, in ``DRAWING_STYLES``.
        seed: of the dealing of things into training, validation and test, and of the linear probe.

    Raises:
        SourceError: a package with drawings, their tags or the weights is not there; the message names the command.
        ValueError: an unknown style.

    Example:
        >>> problem = drawing_transfer(held_out=3)  # doctest: +SKIP
        >>> problem.train[0].shape[1:], problem.others_test.shape[:2]  # doctest: +SKIP
        (torch.Size([112, 6, 6]), torch.Size([4, 80]))
    """
    pictures, inputs, others = _lower_outputs()
    train, source_test, target = split_drawings(pictures, held_out=held_out, test_share=0.4, seed=seed)
    things = pictures.things[train].unique()
    dealt = things[torch.randperm(len(things), generator=torch.Generator().manual_seed(seed))]
    in_val = torch.isin(pictures.things[train], dealt[: len(things) // 5])
    parts = (train[~in_val], train[in_val], source_test, target)
    examples = [(inputs[part], pictures.labels[part]) for part in parts]
    order = torch.randperm(others.shape[1], generator=torch.Generator().manual_seed(seed))
    half = len(order) // 2
    network = _upper(len(pictures.classes), seed)
    _probe(network, *examples[0], seed)
    return DrawingTransfer(*examples, others[:, order[:half]], others[:, order[half:]], network, held_out)


def retrieval(model: nn.Module, others: Tensor) -> float:
    """Returns how often a drawing is nearest, by cosine, to the mean of the same thing over the other styles.

    What a network knows of things that it was not tuned on; in percent, the mean over styles; chance is
    ``100 / things``.

    Args:
        model: from inputs to features ``(batch, dim)``.
        others: ``(styles, things, ...)``, at least 2 styles.

    Raises:
        ValueError: fewer than 2 styles, or no things.

    Example:
        >>> retrieval(nn.Flatten(), torch.eye(3).expand(2, 3, 3))
        100.0
    """
    if others.ndim < 3 or len(others) < 2 or not others.shape[1]:
        raise ValueError(f"others needs the shape (styles, things, ...) with at least 2 styles, got {others.shape}")
    with evaluating(model), torch.no_grad():
        features = F.normalize(torch.stack([model(style) for style in others]), dim=-1)
    means = F.normalize(features.sum(dim=0) - features, dim=-1)
    nearest = torch.einsum("sqd,std->sqt", features, means).argmax(dim=2)
    return 100 * float((nearest == torch.arange(nearest.shape[1])).double().mean())


class FixedStatistics(nn.Sequential):
    """An ``nn.Sequential`` whose BatchNorm layers keep their running statistics while it trains.

    Models tuned from one start can then be averaged in weights without estimating statistics again.

    Example:
        >>> net = FixedStatistics(nn.BatchNorm1d(2), nn.Dropout()).train()
        >>> net[0].training, net[1].training
        (False, True)
    """

    def train(self, mode: bool = True) -> FixedStatistics:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


@functools.cache
def _lower_outputs() -> tuple[Drawings, Tensor, Tensor]:
    """The drawings of the classes, what the lower part makes of them, and ``(4, things, ...)`` of other things."""
    pictures, own = drawing_features(_SIZE, before=_ENTRANCE)
    everything = drawings(label="name", size=_SIZE)
    known = set(pictures.names)
    named = [number for number, name in enumerate(everything.names) if name not in known]
    chosen = torch.tensor(named[:: len(named) // _OTHER_THINGS][:_OTHER_THINGS])
    places = chosen + len(everything.names) * torch.arange(len(DRAWING_STYLES))[:, None]
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    found = cached_features(net[: names.index(_ENTRANCE)], everything.images[places.flatten()])
    return pictures, own, found.view(len(DRAWING_STYLES), len(chosen), *found.shape[1:])


def _upper(classes: int, seed: int) -> FixedStatistics:
    net = efficientnet_lite0(num_classes=classes, seed=seed)
    parts = dict(net.named_children())
    names = list(parts)
    upper = FixedStatistics()
    for name in names[names.index(_ENTRANCE) :]:
        upper.add_module(name, parts[name])
    return upper.eval()


def _probe(network: nn.Sequential, inputs: Tensor, labels: Tensor, seed: int) -> None:
    """Fits the head by multinomial regression on the features, in place."""
    head = network.head
    with torch.no_grad():
        features = torch.cat([network[:-1](batch) for batch in inputs.split(128)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
