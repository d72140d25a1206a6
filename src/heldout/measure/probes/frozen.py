"""The frozen subspace of a layer: the directions that its inputs never take, in which training cannot move weights.

Source: arXiv:1710.03667 (Advani, Saxe): with fewer examples than weights the gradient has no component there, so what
the initial weights did is never unlearned; and the smallest eigenvalue outside of it, which is tiny where there are as
many examples as weights, sets how much noise training picks up and how long that takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.data import split_target
from heldout.errors import check_values, checked
from heldout.method import evaluating, forward
from heldout.nn import inputs_for


class FrozenSubspace(NamedTuple):
    """Directions without data.

    Attributes:
        dim: their number, ``features - rank``.
        basis: orthonormal, float64 ``(features, dim)``.
        smallest_nonzero: the smallest eigenvalue of ``X^T X / n`` that counts as nonzero; 0 if none does.
        largest: the largest one.

    Example:
        >>> found = frozen_subspace(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        >>> found.dim, found.basis.abs().tolist(), found.largest
        (1, [[0.0], [1.0]], 2.5)
    """

    dim: int
    basis: Tensor
    smallest_nonzero: float
    largest: float


@checked
def frozen_subspace(
    model_or_features: nn.Module | Tensor,
    loader: Iterable[Any] | None = None,
    tol: float = 1e-10,
    *,
    layer: str | nn.Linear | None = None,
) -> FrozenSubspace:
    """Returns the null space of the second moment ``X^T X / n`` of features, or of the inputs of a linear layer.

    It is the subspace in which gradient descent on these data never changes the layer's weights, as long as what
    comes before the layer stays fixed. Second moments are not centred, because gradients are not. Floor: one forward
    pass over the loader, and a ``features x features`` matrix in float64 with its eigendecomposition.

    Args:
        model_or_features: features ``(n, features)``, or a model; tokens ``(batch, tokens, features)`` all count.
        loader: batches for the model: inputs, or inputs with targets. The model is in eval mode meanwhile.
        tol: eigenvalues at most this share of the largest count as 0; the default is below what float32 rounds off.
        layer: the ``nn.Linear`` meant, by itself or by name; by default the last one that runs.

    Raises:
        ValueError: features without a loader's model or the reverse, no data, a layer that does not run, or features
            that are not finite.
        TypeError: neither features nor a module.

    Source: arXiv:1710.03667, sections 2 and 4.

    Example:
        >>> x = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
        >>> found = frozen_subspace(x)
        >>> found.dim, bool((x.double() @ found.basis).abs().max() < 1e-6)
        (20, True)
        >>> model = nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 1))
        >>> frozen_subspace(model, [x]).dim, frozen_subspace(model, [x], layer="0").dim
        (34, 20)
    """
    check_values(model_or_features=model_or_features)
    if not 0 <= tol < 1:
        raise ValueError(f"tol must lie in [0, 1), got {tol}")
    moment: Tensor | None
    if isinstance(model_or_features, Tensor):
        if loader is not None or layer is not None:
            raise ValueError("features need no loader and no layer; pass a model to measure one of its layers")
        moment, count = _add(None, 0, model_or_features)
    elif isinstance(model_or_features, nn.Module):
        if loader is None:
            raise ValueError("a model needs a loader: the batches whose features are measured")
        moment, count = _of_layer(model_or_features, loader, layer)
    else:
        raise TypeError(f"expected an nn.Module or a tensor of features, got {type(model_or_features).__name__}")
    if moment is None or not count:
        raise ValueError("there are no examples to measure the features of")
    if not torch.isfinite(moment).all():
        raise ValueError("features must be finite")
    values, vectors = torch.linalg.eigh(moment / count)
    zero = values <= tol * values[-1].clamp(min=0)
    dim = int(zero.sum())
    smallest = float(values[dim]) if dim < len(values) else 0.0
    return FrozenSubspace(dim, vectors[:, :dim], smallest, max(0.0, float(values[-1])))


def _of_layer(model: nn.Module, loader: Iterable[Any], layer: str | nn.Linear | None) -> tuple[Tensor | None, int]:
    """The sum of outer products of a layer's inputs, and their number."""
    wanted = model.get_submodule(layer) if isinstance(layer, str) else layer
    if wanted is not None and not isinstance(wanted, nn.Linear):
        raise ValueError(f"layer must be an nn.Linear, got {type(wanted).__name__}")
    moment, count = None, 0
    seen: list[tuple[nn.Module, Tensor]] = []
    watched = [m for m in model.modules() if isinstance(m, nn.Linear)] if wanted is None else [wanted]
    handles = [m.register_forward_pre_hook(lambda m, args: seen.append((m, args[0]))) for m in watched]
    try:
        with evaluating(model), torch.no_grad():
            for batch in loader:
                seen.clear()
                forward(model, inputs_for(model, _inputs(batch)))
                if not seen:
                    raise ValueError("the nn.Linear whose inputs are measured does not run in a forward pass")
                wanted = seen[-1][0] if wanted is None else wanted
                for module, entered in seen:
                    if module is wanted:
                        moment, count = _add(moment, count, entered)
    finally:
        for handle in handles:
            handle.remove()
    return moment, count


def _inputs(batch: Any) -> Any:
    """The inputs of a batch with or without targets."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0]
    if isinstance(batch, Mapping) and not {"labels", "label", "targets", "target"} & set(batch):
        return batch
    return split_target(batch)[0]


def _add(moment: Tensor | None, count: int, features: Tensor) -> tuple[Tensor, int]:
    if features.ndim < 2:
        raise ValueError(f"features must be (n, features), got {tuple(features.shape)}")
    rows = features.detach().flatten(0, -2).double()
    added = rows.T @ rows
    return added if moment is None else moment.add_(added), count + len(rows)
