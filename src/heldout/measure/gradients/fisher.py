"""Core: How much does what a model says depend on each of its parameters? The diagonal of the Fisher information.

Sources: arXiv:1412.1193 (empirical and true Fisher information), arXiv:1612.00796 (its use in continual learning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.measure.gradients.layer_gradients import ExampleLoss
from heldout.measure.gradients.per_example import labelled_batches, sum_of_squared_gradients
from heldout.method import as_dataset, device_of, evaluating, forward
from heldout.nn import inputs_for

FisherKind = Literal["empirical", "model"]


@checked
def fisher_diagonal(
    model: nn.Module,
    data: Any,
    loss: ExampleLoss | None = None,
    *,
    kind: FisherKind = "empirical",
    params: Callable[[str], bool] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Returns the diagonal of the Fisher information by parameter name: the mean of squared per-example gradients.

    The gradient of a batch's mean loss, squared, is not that: it is smaller by about the size of the batch. The model
    is used in eval mode and left unchanged. A pass over the data costs one forward and one backward pass of each batch
    where the model can be taken layer by layer.

    Args:
        model: any module; its parameters that require a gradient are meant.
        data: a data set, a pair of tensors, or a DataLoader.
        loss: ``(outputs, targets) -> (batch,)``, a negative log-likelihood of each example, not reduced; default:
            cross-entropy, mean over an example's tokens for language models, squared error for real targets.
        kind: "empirical", with the labels of the data; "model", with labels drawn from the model's own distribution
            (the Fisher information proper), for classes and tokens alone.
        params: which parameters, by name; default: all.
        batch_size: examples at once; their gradients are held together.
        seed: of the labels that are drawn.

    Raises:
        ValueError: no example, gradients that are not finite, or labels to be drawn for real targets.

    Source: arXiv:1612.00796, section 2; the two kinds: arXiv:1412.1193, section 9.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> fisher_diagonal(model, (torch.tensor([[2.0]]), torch.tensor([0])))["weight"]  # (x p (1 - p)) ** 2 / p ...
        tensor([[1.],
                [1.]])
    """
    check_one_of(("empirical", "model"), kind=kind)
    check_at_least(1, batch_size=batch_size)
    data = as_dataset(data, "data") if hasattr(data, "__getitem__") else data
    check_nonempty(data=data)
    generator = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    examples = 0
    with evaluating(model):
        for inputs, targets in labelled_batches(data, batch_size):
            if kind == "model":
                targets = _drawn_labels(model, inputs, targets, generator)
            for name, squares in sum_of_squared_gradients(model, inputs, targets, loss, params=params).items():
                total[name] = total[name] + squares if name in total else squares
            examples += len(targets)
    check_nonempty(data=range(examples))
    fisher = {name: squares / examples for name, squares in total.items()}
    for name, values in fisher.items():
        if not values.isfinite().all():
            raise ValueError(f"the gradient of {name} is not finite on some example of data")
    return fisher


def _drawn_labels(model: nn.Module, inputs: Any, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Labels from the model's own distribution, where there are labels: for tokens shifted as a causal model's are."""
    if targets.is_floating_point():
        raise ValueError('kind="model" draws classes or tokens, the targets of data are real numbers')
    with torch.no_grad():
        logits = forward(model, inputs_for(model, inputs)).float().cpu()
    probabilities = logits.softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
    if targets.ndim == 1:
        return drawn.to(device_of(model))
    config = getattr(model, "config", None)
    if config is not None and not getattr(config, "is_encoder_decoder", False):
        drawn = torch.cat([targets.cpu()[:, :1], drawn[:, :-1]], 1)  # position i predicts token i + 1
    return torch.where(targets.cpu() == -100, -100, drawn).to(device_of(model))
