"""Fine-tuning of a really pretrained network on drawings of three styles, to be judged on the fourth and on the rest.

The lower part of EfficientNet-Lite0 stays as ImageNet made it, and its outputs are computed once and kept; what is
tuned is the upper part, from stage 6 on.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.method import evaluating
from heldout.nn import cached_features, efficientnet_lite0
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks.images.biases import stratified_split
from heldout.tasks.images.drawings import DRAWING_STYLES, Drawings, drawing_tags, drawings, split_drawings

DRAWING_TASKS = ("objects", "travel-places", "food-drink", "animals-nature")  # Unicode's groups
_ENTRANCE, _OTHER_THINGS, _LEAST_THINGS = "stage6", 160, 12
Examples = tuple[Tensor, Tensor]


class DrawingTransfer(NamedTuple):
    """What is to be learned, and what not to be forgotten; inputs are ``(n, 112, h, w)``, outputs of the lower part.

    Attributes:
        train, val: inputs and the 12 classes of things in three styles; other things in ``val``.
        source_test: again other things, in the three styles.
        target: the same things as in ``source_test``, in the fourth style.
        others_val, others_test: inputs ``(4, things, 112, h, w)`` of things outside of the classes, in four styles.
        network: the upper part with a new ``head`` for the classes; BatchNorm statistics stay fixed.
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


class DrawingTasks(NamedTuple):
    """Several tasks for one pretrained network; each part holds inputs ``(n, 112, h, w)``, task and class ``(n,)``.

    Attributes:
        train, val, test: three styles; the things of one part are in no other.
        unseen: the things of ``test`` in the fourth style.
        upper: the upper part without a head, to features ``(n, 1280)``; BatchNorm statistics stay fixed.
        classes: what the classes of each task are called: Unicode's subgroups.
    """

    train: tuple[Tensor, Tensor, Tensor]
    val: tuple[Tensor, Tensor, Tensor]
    test: tuple[Tensor, Tensor, Tensor]
    unseen: tuple[Tensor, Tensor, Tensor]
    upper: nn.Sequential
    classes: tuple[tuple[str, ...], ...]


def drawing_transfer(held_out: int, *, size: int = 64, seed: int = 0) -> DrawingTransfer:
    """Returns a problem of transfer from ImageNet to drawings: three styles to learn, the fourth to generalise to.

    Args:
        held_out: number of the style that is not trained on, in ``DRAWING_STYLES``.
        size: height and width of the pictures, in pixels.
        seed: of the dealing of things into training, validation and test, and of the head.

    Raises:
        SourceError: a package with drawings, their tags or the weights is not there; the message names the command.
        ValueError: an unknown style.

    Example:
        >>> problem = drawing_transfer(held_out=3)  # doctest: +SKIP
        >>> problem.train[0].shape[1:], problem.others_test.shape[:2]  # doctest: +SKIP
        (torch.Size([112, 4, 4]), torch.Size([4, 80]))
    """
    pictures, everything, inputs = _pictures("class", size), _pictures("name", size), _lower_outputs(size)
    number = {name: thing for thing, name in enumerate(everything.names)}
    own = inputs[:, [number[name] for name in pictures.names]].flatten(0, 1)
    train, source_test, target = split_drawings(pictures, held_out=held_out, test_share=0.4, seed=seed)
    things = pictures.things[train].unique()
    dealt = things[torch.randperm(len(things), generator=torch.Generator().manual_seed(seed))]
    in_val = torch.isin(pictures.things[train], dealt[: len(things) // 5])
    parts = (train[~in_val], train[in_val], source_test, target)
    examples = [(own[part], pictures.labels[part]) for part in parts]
    named = sorted(set(number.values()) - {number[name] for name in pictures.names})
    others = inputs[:, named[:: max(1, len(named) // _OTHER_THINGS)][:_OTHER_THINGS]]
    order = torch.randperm(others.shape[1], generator=torch.Generator().manual_seed(seed))
    half = len(order) // 2
    network = _upper(len(pictures.classes), seed)
    return DrawingTransfer(*examples, others[:, order[:half]], others[:, order[half:]], network, held_out)


def drawing_tasks(held_out: int, *, size: int = 64, seed: int = 0) -> DrawingTasks:
    """Returns four tasks on drawings for a network that ImageNet trained: things of one group each, told by subgroup.

    The classes of a task are the subgroups with at least 12 things.

    Args:
        held_out: number of the style that is not trained on, in ``DRAWING_STYLES``.
        size: height and width of the pictures, in pixels.
        seed: of the dealing of the things of each class into training (55 %), validation (15 %) and test (30 %).

    Raises:
        SourceError: a package with drawings, their tags or the weights is not there; the message names the command.
        ValueError: an unknown style.

    Example:
        >>> problem = drawing_tasks(held_out=3)  # doctest: +SKIP
        >>> problem.classes[3]  # doctest: +SKIP
        ('animal-bird', 'animal-bug', 'animal-mammal', 'animal-marine', 'plant-flower', 'plant-other')
    """
    if held_out not in range(len(DRAWING_STYLES)):
        raise ValueError(f"held_out must be one of the styles {list(range(len(DRAWING_STYLES)))}, got {held_out}")
    pictures, inputs = _pictures("subgroup", size), _lower_outputs(size)
    tags = drawing_tags(pictures.names)
    number = {name: thing for thing, name in enumerate(_pictures("name", size).names)}
    members: dict[tuple[str, str], list[int]] = {}
    for name in pictures.names:
        members.setdefault((tags[name].group, tags[name].subgroup), []).append(number[name])
    kept = sorted(key for key, things in members.items() if key[0] in DRAWING_TASKS and len(things) >= _LEAST_THINGS)
    classes = tuple(tuple(subgroup for group, subgroup in kept if group == task) for task in DRAWING_TASKS)
    things = torch.tensor([thing for key in kept for thing in members[key]])
    label_of = {key: classes[DRAWING_TASKS.index(key[0])].index(key[1]) for key in kept}
    task = torch.tensor([DRAWING_TASKS.index(key[0]) for key in kept for _ in members[key]])
    label = torch.tensor([label_of[key] for key in kept for _ in members[key]])
    one_of_all = torch.tensor([place for place, key in enumerate(kept) for _ in members[key]])
    train, val, test = stratified_split(one_of_all, (0.55, 0.15, 0.3), seed=seed)
    seen = [style for style in range(len(DRAWING_STYLES)) if style != held_out]

    def part(chosen: Tensor, styles: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        shown = inputs[styles][:, things[chosen]].flatten(0, 1)
        return shown, task[chosen].repeat(len(styles)), label[chosen].repeat(len(styles))

    upper = _upper(1, seed)[:-1]
    return DrawingTasks(*(part(each, seen) for each in (train, val, test)), part(test, [held_out]), upper, classes)


def why_no_drawing_transfer() -> str:
    """Returns why ``drawing_transfer`` cannot be used here, naming the packages that are missing, or an empty text."""
    return missing([STYLE, TAGS, ENET])


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
def _pictures(label: Literal["class", "subgroup", "name"], size: int) -> Drawings:
    return drawings(label=label, size=size)


@functools.cache
def _lower_outputs(size: int) -> Tensor:
    """Outputs of the lower part, ``(4, things, 112, h, w)``, for all things in order of their names."""
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    found = cached_features(net[: names.index(_ENTRANCE)], _pictures("name", size).images)
    return found.unflatten(0, (len(DRAWING_STYLES), -1))


def _upper(classes: int, seed: int) -> FixedStatistics:
    net = efficientnet_lite0(num_classes=classes, seed=seed)
    parts = dict(net.named_children())
    names = list(parts)
    upper = FixedStatistics()
    for name in names[names.index(_ENTRANCE) :]:
        upper.add_module(name, parts[name])
    return upper.eval()
