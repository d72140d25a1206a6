"""Fine-tuning of a really pretrained network on drawings of three styles, to be judged on the fourth and on the rest.

The lower part of EfficientNet-Lite0 stays as ImageNet made it, and its outputs are computed once and kept; what is
tuned is the upper part, from stage 6 on, behind a linear probe.
"""

from __future__ import annotations

import copy
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_between, check_finite, checked
from heldout.method import evaluating
from heldout.nn import cached_features, efficientnet_lite0
from heldout.tasks.images.drawing_features import drawing_features
from heldout.tasks.images.drawings import DRAWING_STYLES, Drawings, drawings, split_drawings

_ENTRANCE, _PROBE_STEPS = "stage6", 300
Examples = tuple[Tensor, Tensor]


class DrawingTransfer(NamedTuple):
    """What is to be learned, and what not to be forgotten.

    Inputs are outputs of the lower part, ``(n, 112, 6, 6)`` of drawings of 96 pixels.

    Attributes:
        train, val: inputs and the 12 classes of things in three styles; other things in ``val``.
        source_test: again other things, in the three styles.
        target: the same things as in ``source_test``, in the fourth style.
        others_val, others_test: inputs ``(4, things, 112, 6, 6)`` of things outside of the classes, in four styles.
        network: the upper part with a linear probe on ``train`` as its ``head``, stopped by the loss on ``val``;
            BatchNorm statistics stay fixed.
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


@checked
def drawing_transfer(
    held_out: int, *, size: int = 96, things: int | None = None, other_things: int = 160, seed: int = 0
) -> DrawingTransfer:
    """Returns a problem of transfer from ImageNet to drawings: three styles to learn, the fourth to generalise to.

    Args:
        held_out: number of the style that is not trained on, in ``DRAWING_STYLES``.
        size: height and width of the drawings in pixels.
        things: of each class, the first so many; None is all (1,569 examples of training and validation).
        other_things: things outside of the classes, at least 4; half of them for validation.
        seed: of the dealing of things into training, validation and test, and of the linear probe.

    Raises:
        SourceError: a package with drawings, their tags or the weights is not there; the message names the command.
        ValueError: an unknown style, or a number of other things that is below 4 or more than there are.

    Example:
        >>> problem = drawing_transfer(held_out=3)  # doctest: +SKIP
        >>> problem.train[0].shape[1:], problem.others_test.shape[:2]  # doctest: +SKIP
        (torch.Size([112, 6, 6]), torch.Size([4, 80]))
    """
    check_at_least(4, other_things=other_things)
    pictures, inputs, others = _lower_outputs(size, things, other_things)
    train, source_test, target = split_drawings(pictures, held_out=held_out, test_share=0.4, seed=seed)
    trained = pictures.things[train].unique()
    dealt = trained[torch.randperm(len(trained), generator=torch.Generator().manual_seed(seed))]
    in_val = torch.isin(pictures.things[train], dealt[: len(trained) // 5])
    parts = (train[~in_val], train[in_val], source_test, target)
    train_set, val, source, shifted = ((inputs[part], pictures.labels[part]) for part in parts)
    order = torch.randperm(others.shape[1], generator=torch.Generator().manual_seed(seed))
    half = len(order) // 2
    network = _upper(len(pictures.classes), seed)
    _probe(network, train_set, val)
    others_val, others_test = others[:, order[:half]], others[:, order[half:]]
    return DrawingTransfer(train_set, val, source, shifted, others_val, others_test, network, held_out)


@checked
def retrieval(model: nn.Module, others: Tensor) -> float:
    """Returns how often a drawing is nearest, by cosine, to the mean of the same thing over the other styles.

    What a network knows of things that it was not tuned on; in percent, the mean over styles; chance is
    ``100 / things``.

    Args:
        model: from inputs to features ``(batch, dim)``.
        others: ``(styles, things, ...)``, at least 2 styles.

    Raises:
        ValueError: fewer than 2 styles, no things, or features that are not finite.

    Example:
        >>> retrieval(nn.Flatten(), torch.eye(3).expand(2, 3, 3))
        100.0
    """
    if others.ndim < 3 or len(others) < 2 or not others.shape[1]:
        raise ValueError(f"others needs the shape (styles, things, ...) with at least 2 styles, got {others.shape}")
    with evaluating(model), torch.no_grad():
        found = torch.stack([model(style) for style in others])
        check_finite(features=found)
        features = F.normalize(found, dim=-1)
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
def _lower_outputs(size: int, things: int | None, other_things: int) -> tuple[Drawings, Tensor, Tensor]:
    """The drawings of the classes, what the lower part makes of them, and ``(4, things, ...)`` of other things."""
    pictures, own = drawing_features(size, before=_ENTRANCE, things=things)
    everything, known = drawings(label="name", size=size), set(drawings(size=size).names)
    named = [number for number, name in enumerate(everything.names) if name not in known]
    check_between(4, len(named), other_things=other_things)
    chosen = torch.tensor(named)[torch.linspace(0, len(named) - 1, other_things).round().long()]
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


def _probe(network: nn.Sequential, train: Examples, val: Examples) -> None:
    """Fits the head by multinomial regression on the features, in place, up to the least loss on validation data."""
    head = network.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        features, shown = (torch.cat([network[:-1](part) for part in each[0].split(128)]) for each in (train, val))
    best, least = copy.deepcopy(head.state_dict()), float("inf")
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(_PROBE_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(head(features), train[1]).backward()
        optimizer.step()
        with torch.no_grad():
            loss = float(F.cross_entropy(head(shown), val[1]))
        if loss < least:
            best, least = copy.deepcopy(head.state_dict()), loss
    head.load_state_dict(best)
