"""Which features a model uses: its score when a block of features is shuffled over the examples.

Source: arXiv:2006.07710, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heldout.data import predict_all
from heldout.errors import check_dimensions, check_labels, check_nonempty, check_same_length, check_values, checked

Block = Sequence[int] | slice | tuple[slice, ...] | Callable[[Tensor, Tensor], Tensor]
Metric = Literal["auc", "accuracy"]
Model = nn.Module | Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """A score over random permutations.

    Attributes:
        mean: over the permutations.
        std: standard deviation of the permutations at hand, which is 0 for one.

    Example:
        >>> x, y = torch.tensor([[-2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0, 1, 1])
        >>> randomized_feature_score(lambda x: x.sum(1), x, y, [1])  # a constant column, shuffled
        Score(mean=1.0, std=0.0)
    """

    mean: float
    std: float


class Reliance(NamedTuple):
    """What a block of features is to a model.

    Attributes:
        intact: the score on the data as they are.
        randomized: the score when the block is shuffled. At chance when the model needs the block.
        others_randomized: the score when all other blocks are shuffled. As high as ``intact`` when the model needs
            nothing but the block.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> found = feature_reliance(lambda x: x[:, 0], x, (x[:, 0] > 0).long(), {"used": [0], "unused": [1]})
        >>> unused = found["unused"]
        >>> unused.intact, unused.randomized.mean, round(unused.others_randomized.mean, 1)
        (1.0, 1.0, 0.5)
    """

    intact: float
    randomized: Score
    others_randomized: Score


@checked
def randomize_features(
    x: Tensor, blocks: Block | Sequence[Block], permutation: Tensor, Q: Tensor | None = None
) -> Tensor:
    """Returns the inputs with blocks of features taken from other examples, all by one permutation.

    One permutation for a whole block keeps the dependence within it, so that only its relation to the other features
    and to the label is lost.

    Args:
        x: inputs ``(n, ...)``.
        blocks: columns (or channels: dimension 1) as ints or a slice; a region as a tuple of slices over dimensions 1,
            2, ..; a function ``(inputs, donors) -> inputs`` for anything else, such as a span of tokens; or a list of
            these.
        permutation: int64 ``(n,)``, the example that each example's block is taken from.
        Q: orthogonal ``(dim, dim)``: blocks are those of ``x @ Q.T``, and the result is turned back.

    Raises:
        ValueError: a Q or a permutation of another shape, or a Q that is not orthogonal.

    Example:
        >>> x = torch.tensor([[1, 10], [2, 20]])
        >>> randomize_features(x, [1], torch.tensor([1, 0])).tolist()
        [[1, 20], [2, 10]]
    """
    check_dimensions(1, permutation=permutation)
    check_labels(
        x.shape[1] if x.ndim > 1 else 1,
        blocks=[
            i for part in blocks for i in (part if isinstance(part, list | tuple) else [part]) if isinstance(i, int)
        ]
        if isinstance(blocks, list | tuple)
        else None,
    )
    check_labels(len(x), permutation=permutation)
    if permutation.shape != x.shape[:1]:
        raise ValueError(f"permutation must have shape ({len(x)},), got {tuple(permutation.shape)}")
    if Q is not None:
        if x.ndim != 2 or Q.shape != (x.shape[1], x.shape[1]):
            raise ValueError(f"Q must be ({x.shape[-1]}, {x.shape[-1]}) for inputs (n, dim), got {tuple(Q.shape)}")
        if not torch.allclose(Q @ Q.T, torch.eye(len(Q)).to(Q), atol=1e-3):
            raise ValueError("Q must be orthogonal")
        return randomize_features(x @ Q.T, blocks, permutation) @ Q
    mixed, donors = x.clone(), x[permutation]
    for block in _as_list(blocks):
        if callable(block):
            mixed = block(mixed, donors)
        else:
            index = (slice(None), *block) if _is_region(block) else (slice(None), block)
            mixed[index] = donors[index]
    return mixed


@checked
def randomized_feature_score(
    model: Model,
    x: Tensor,
    y: Tensor,
    block: Block | Sequence[Block],
    *,
    Q: Tensor | None = None,
    metric: Metric = "auc",
    repeats: int = 5,
    generator: torch.Generator | None = None,
) -> Score:
    """Returns a model's score on data of which a block of features is shuffled over the examples.

    Near chance, the model relies on the block; unchanged, it does not. ``repeats`` passes over the data.

    Args:
        model: maps inputs to logits ``(n, classes)`` or, for two classes, scores ``(n,)`` or ``(n, 1)`` that are larger
            for class 1. A module is put in eval mode for the call.
        x: inputs ``(n, ...)``, any tensor; use several thousand, for an AUC at chance has a standard error of
            ``0.6 / sqrt(n)``.
        y: classes ``(n,)``.
        block: see ``randomize_features``.
        Q: rotation under which blocks are columns; see there.
        metric: "auc", of ``logit_1 - logit_0``, for two classes; or "accuracy". The AUC of a nearly constant score is
            noise: look at both.
        repeats: number of permutations.
        generator: source of the permutations; seeded with 0 by default.

    Raises:
        ValueError: fewer than 2 examples, labels that do not fit, outputs that are not finite, a single class, or more
            than two with "auc".

    Source: arXiv:2006.07710, section 4: the S-randomized AUC and accuracy.

    Example:
        >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> randomized_feature_score(lambda x: x[:, 0], x, y, [1, 2])
        Score(mean=1.0, std=0.0)
        >>> bool(abs(randomized_feature_score(lambda x: x[:, 0], x, y, [0]).mean - 0.5) < 0.05)
        True
    """
    check_values(x=x, y=y)
    check_same_length(x=x, y=y)
    check_labels(2 if metric == "auc" else None, y=y)
    check_nonempty(block=block)
    check_labels(
        x.shape[1] if x.ndim > 1 else 1,
        block=[i for part in block for i in (part if isinstance(part, list | tuple) else [part]) if isinstance(i, int)]
        if isinstance(block, list | tuple)
        else None,
    )
    if len(x) < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"needs at least 2 examples and a label for each, got {tuple(x.shape)} and {tuple(y.shape)}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    generator = generator or torch.Generator().manual_seed(0)
    scores = []
    for _ in range(repeats):
        permutation = torch.randperm(len(x), generator=generator).to(x.device)
        scores.append(_score(model, randomize_features(x, block, permutation, Q), y, metric))
    found = torch.tensor(scores, dtype=torch.float64)
    return Score(found.mean().item(), found.std(correction=0).item())


@checked
def feature_reliance(
    model: Model,
    x: Tensor,
    y: Tensor,
    blocks: Mapping[str, Block],
    *,
    Q: Tensor | None = None,
    metric: Metric = "auc",
    repeats: int = 5,
    generator: torch.Generator | None = None,
) -> dict[str, Reliance]:
    """Returns for each block of features how much a model relies on it: shuffled, and alone left as it is.

    A model relies on a block exclusively when shuffling it takes the score to chance and shuffling all others changes
    nothing. ``1 + 2 blocks repeats`` passes over the data.

    Args:
        model: as for ``randomized_feature_score``, and so are x, y, Q, metric, repeats and generator.
        blocks: at least two disjoint blocks by name; features in none of them are never shuffled.

    Raises:
        ValueError: as ``randomized_feature_score`` does, or fewer than two blocks.

    Source: arXiv:2006.07710, section 4.

    Example:
        >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
        >>> found = feature_reliance(lambda x: x[:, 0], x, (x[:, 0] > 0).long(), {"first": [0], "rest": [1, 2]})
        >>> found["first"].others_randomized.mean, found["rest"].randomized.mean
        (1.0, 1.0)
    """
    check_values(x=x, y=y)
    check_same_length(x=x, y=y)
    check_labels(2 if metric == "auc" else None, y=y)
    if len(blocks) < 2:
        raise ValueError(f"feature_reliance needs at least 2 blocks to compare, got {len(blocks)}")
    generator = generator or torch.Generator().manual_seed(0)

    def shuffled(chosen: list[Block]) -> Score:
        return randomized_feature_score(model, x, y, chosen, Q=Q, metric=metric, repeats=repeats, generator=generator)

    intact = _score(model, x, y, metric)
    return {
        name: Reliance(intact, shuffled([block]), shuffled([other for key, other in blocks.items() if key != name]))
        for name, block in blocks.items()
    }


def _is_region(block: object) -> bool:
    return isinstance(block, tuple) and all(isinstance(part, slice) for part in block)


def _as_list(blocks: Block | Sequence[Block]) -> list:
    """A list of blocks from one block or several."""
    if callable(blocks) or isinstance(blocks, slice) or _is_region(blocks):
        return [blocks]
    parts = list(blocks)
    return [parts] if all(isinstance(part, int) for part in parts) else parts


def _score(model: Model, x: Tensor, y: Tensor, metric: Metric) -> float:
    outputs, labels = predict_all(model, TensorDataset(x, y), batch_size=4096)
    outputs = outputs[:, 0] if outputs.shape[1:] == (1,) else outputs
    if outputs.ndim not in (1, 2) or not outputs.isfinite().all():
        raise ValueError(f"the model must give finite (n, classes) logits or (n,) scores, got {tuple(outputs.shape)}")
    if metric == "accuracy":
        predicted = outputs.argmax(1) if outputs.ndim == 2 else outputs > 0
        return (predicted == labels).double().mean().item()
    if metric != "auc":
        raise ValueError(f"metric must be 'auc' or 'accuracy', got {metric!r}")
    if labels.unique().tolist() != [0, 1] or (outputs.ndim == 2 and outputs.shape[1] != 2):
        raise ValueError(f"AUC needs examples of both classes 0 and 1, got {labels.unique().tolist()[:5]}")
    from scipy.stats import rankdata

    margin = outputs if outputs.ndim == 1 else outputs[:, 1] - outputs[:, 0]
    positive = labels == 1
    count = int(positive.sum())
    ranks = torch.from_numpy(rankdata(margin.double().numpy()))  # ties share their mean rank
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
