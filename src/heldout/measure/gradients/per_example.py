"""Core: Per-example gradients of any model, and their random projections.

The gradient of a linear map for one example is an outer product of what entered the layer and of the gradient of what
left it, so one backward pass over the batch gives those of all examples. This holds for linear, convolution, embedding
and norm layers. A model with other parameters goes through ``torch.func.vmap``, and one that this cannot handle through
a loop over examples.

Floor: one forward and one backward pass of the batch, and one pass over the per-example gradients that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from heldout.data import batches, split_target
from heldout.errors import check_fields, check_finite, check_nonempty, check_same_length, checked
from heldout.measure.gradients.layer_gradients import (
    ExampleLoss,
    _by_layers,
    _checked_losses,
    _NotByLayersError,
    _Outer,
    _Use,
    _Whole,
    _why_not_layers,
    _wide,
    sum_of,
)
from heldout.measure.gradients.projections import Projection, _projector
from heldout.method import as_dataset, evaluating, forward
from heldout.nn import inputs_for

Path = Literal["auto", "layers", "vmap", "loop"]


@checked
def per_example_grads(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: ExampleLoss | None = None,
    *,
    params: Callable[[str], bool] | None = None,
    path: Path = "auto",
) -> dict[str, Tensor]:
    """Returns the gradient of each example's loss by parameter name: ``{name: (batch, *parameter.shape)}``.

    A parameter that takes no part in the loss has zero gradients. The model is used in eval mode (no dropout) and left
    unchanged; shared parameters appear once, with the sum over their uses.

    Args:
        model: any module; its parameters that require a gradient are meant.
        inputs: a batch: a tensor, a tuple of them, or a dict of keyword arguments, batch first.
        targets: ``(batch, ...)``.
        loss: ``(outputs, targets) -> (batch,)``, not reduced; default cross-entropy, mean over an example's tokens for
            language models (shifted by one where the model is a causal one, label -100 left out), or the mean squared
            error for real targets.
        params: which parameters, by name; default: all.
        path: "layers" (one backward pass), "vmap", "loop" (one example at a time), or the first of them that works.

    Raises:
        ValueError: a BatchNorm in train mode (its examples are not independent of each other), no example, no parameter
            selected, a loss that is already reduced, or a path that cannot handle the model.

    Example:
        >>> grads = per_example_grads(nn.Linear(3, 2), torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1]))
        >>> {name: tuple(grad.shape) for name, grad in grads.items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """
    check_same_length(inputs=inputs if isinstance(inputs, Tensor) else None, targets=targets)
    check_nonempty(inputs=inputs)
    names = _selected(model, params)
    _refuse_batch_statistics(model)
    batch = _prepared(model, inputs, targets)
    loss = loss or default_example_loss(model)
    if path not in ("auto", "layers", "vmap", "loop"):
        raise ValueError(f"path must be auto, layers, vmap or loop, got {path!r}")
    with evaluating(model):
        if path in ("auto", "layers"):
            reason = _why_not_layers(model, names)
            if not reason:
                try:
                    return {n: sum_of(uses) for n, uses in _by_layers(model, *batch, loss, names).items()}
                except _NotByLayersError as error:
                    reason = str(error)
            if path == "layers":
                raise ValueError(f"the gradients cannot be taken layer by layer: {reason}")
        if path == "vmap":
            return _by_vmap(model, *batch, loss, names)
        if path == "auto":
            try:
                return _by_vmap(model, *batch, loss, names)
            except (RuntimeError, NotImplementedError):  # what vmap cannot trace
                pass
        return _by_loop(model, *batch, loss, names)


@checked
def gradient_features(
    model: nn.Module,
    data: Any,
    loss: ExampleLoss | None = None,
    *,
    dim: int = 1024,
    projection: Projection = "rademacher",
    params: Callable[[str], bool] | None = None,
    normalise: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """Returns each example's gradient, projected at random: float32 ``(n, dim)``, on the CPU.

    Inner products are kept up to a relative error of about ``1 / sqrt(dim)``. The projection is drawn from the seed
    alone, so features of other data, batches or calls are comparable.

    Args:
        model: as ``per_example_grads``.
        data: a data set, a pair of tensors, or a DataLoader.
        loss: as ``per_example_grads``.
        dim: length of a feature vector.
        projection: "rademacher", random signs, the usual one, P * dim operations for an example with P parameters;
            "srht", a subsampled Hadamard transform, P log P; "countsketch", every parameter to one place with a random
            sign, P, with more spread where few parameters carry the gradient; "none", all P values.
        params: which parameters, by name; default: all.
        normalise: scale each vector to length 1.
        batch_size: examples at once; they need ``batch_size`` times the floats of the largest parameter, of all P with
            "srht" and "none", and where a model cannot be taken layer by layer.
        seed: of the projection.

    Raises:
        ValueError: as ``per_example_grads``; a gradient of zero or one that is not finite, with the example's index.

    Example:
        >>> data = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> gradient_features(nn.Linear(4, 3), data, dim=8).shape
        torch.Size([6, 8])
    """
    check_nonempty(data=data)
    if projection not in ("rademacher", "srht", "countsketch", "none"):
        raise ValueError(f"projection must be rademacher, srht, countsketch or none, got {projection!r}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    names = _selected(model, params)
    own = dict(model.named_parameters())
    size, device = sum(own[name].numel() for name in names), own[names[0]].device
    project = _projector(projection, size, dim, seed, device)
    rows, seen = [], 0
    for inputs, targets in labelled_batches(data, batch_size):
        features = project(_flat_grads(model, inputs, targets, loss, names))
        lengths = features.norm(dim=1)
        if bad := (~lengths.isfinite()).nonzero().flatten().tolist():
            raise ValueError(f"the gradient of example {seen + bad[0]} is not finite")
        if normalise:
            if bad := (lengths == 0).nonzero().flatten().tolist():
                raise ValueError(f"the gradient of example {seen + bad[0]} is zero: it has no direction")
            features = features / lengths[:, None]
        rows.append(features.cpu())
        seen += len(features)
    if not rows:
        raise ValueError("there is no example to take a gradient of")
    return torch.cat(rows)


def _flat_grads(
    model: nn.Module, inputs: Any, targets: Tensor, loss: ExampleLoss | None, names: list[str]
) -> Iterator[Tensor]:
    """Yields float32 ``(batch, n)`` for one parameter after the other; layer by layer, only one exists at a time."""
    _refuse_batch_statistics(model)
    prepared, example_loss = _prepared(model, inputs, targets), loss or default_example_loss(model)
    uses: dict[str, list[_Use]] | None = None
    if not _why_not_layers(model, names):
        with evaluating(model), suppress(_NotByLayersError):
            uses = _by_layers(model, *prepared, example_loss, names)
    if uses is None:
        chosen = set(names)
        whole = per_example_grads(model, inputs, targets, example_loss, params=chosen.__contains__)
        uses = {name: [_Whole(grad)] for name, grad in whole.items()}
    for name in names:
        yield sum_of(uses.pop(name)).flatten(1).float()


@dataclass(frozen=True)
class GradientSums:
    """Sums over examples, by parameter.

    Attributes:
        gradient: name -> sum of the examples' gradients, of the parameter's shape, in float32 at least.
        squared: name -> sum of the squared lengths of the examples' gradients.
        examples: how many there were.

    Example:
        >>> sums = GradientSums({"weight": torch.tensor([3.0, 4.0])}, {"weight": 25.0}, examples=2)
        >>> sums.gradient["weight"].square().sum().item() / (sums.examples * sums.squared["weight"])  # coherence
        0.5
    """

    gradient: dict[str, Tensor]
    squared: dict[str, float]
    examples: int

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def gradient_sums(
    model: nn.Module,
    data: Any,
    loss: ExampleLoss | None = None,
    *,
    params: Callable[[str], bool] | None = None,
    batch_size: int = 64,
) -> GradientSums:
    """Returns the sums of gradients and of their squared lengths, without holding those of more than one batch.

    For layers on one vector per example the lengths come from the factors of the outer product, so that a batch costs
    little more than a plain backward pass.

    Args:
        model, loss, params: as ``per_example_grads``.
        data: a data set, a pair of tensors, or a DataLoader.
        batch_size: examples at once.

    Raises:
        ValueError: as ``per_example_grads``.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> data = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
        >>> sums = gradient_sums(model, data, lambda outputs, targets: (outputs - targets).square().sum(1) / 2)
        >>> sums.gradient["weight"].item(), sums.squared["weight"]  # -1 and -2
        (-3.0, 5.0)
    """
    check_nonempty(data=data)
    names = _selected(model, params)
    _refuse_batch_statistics(model)
    example_loss = loss or default_example_loss(model)
    own = dict(model.named_parameters())
    total = {name: _wide(torch.zeros_like(own[name])) for name in names}
    squared = dict.fromkeys(names, 0.0)
    examples, layers = 0, not _why_not_layers(model, names)
    for inputs, targets in labelled_batches(data, batch_size):
        prepared = _prepared(model, inputs, targets)
        uses: dict[str, list[_Use]] | None = None
        if layers:
            with evaluating(model):
                try:
                    uses = _by_layers(model, *prepared, example_loss, names)
                except _NotByLayersError:
                    layers = False
        if uses is None:
            grads = per_example_grads(model, inputs, targets, example_loss, params=params)
            uses = {name: [_Whole(grad)] for name, grad in grads.items()}
        for name, of_one in uses.items():
            if len(of_one) == 1:
                total[name] += of_one[0].sum()
                squared[name] += float(of_one[0].squared().double().sum())
            else:
                grad = sum_of(of_one)
                total[name] += _wide(grad).sum(0)
                squared[name] += float(grad.double().square().sum())
        examples += len(prepared[1])
    if not examples:
        raise ValueError("there is no example to take a gradient of")
    check_finite(data=list(squared.values()))
    return GradientSums(total, squared, examples)


@checked
def sum_of_squared_gradients(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: ExampleLoss | None = None,
    *,
    params: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Returns the sum over a batch of each example's squared gradient by parameter name, in the parameter's shape.

    Arguments and errors are those of ``per_example_grads``. For a layer on one vector an example, squares of an outer
    product are the outer product of squares, so that no gradient of a single example is made: the cost is that of a
    plain backward pass.

    Example:
        >>> model, x, y = nn.Linear(3, 2), torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])
        >>> squares = sum_of_squared_gradients(model, x, y)
        >>> bool((squares["weight"] - per_example_grads(model, x, y)["weight"].square().sum(0)).abs().max() < 1e-6)
        True
    """
    check_nonempty(inputs=inputs)
    names = _selected(model, params)
    _refuse_batch_statistics(model)
    prepared, example_loss = _prepared(model, inputs, targets), loss or default_example_loss(model)
    uses: dict[str, list[_Use]] | None = None
    if not _why_not_layers(model, names):
        with evaluating(model), suppress(_NotByLayersError):
            uses = _by_layers(model, *prepared, example_loss, names)
    if uses is None:
        whole = per_example_grads(model, inputs, targets, example_loss, params=params)
        uses = {name: [_Whole(grad)] for name, grad in whole.items()}
    found = {}
    for name in names:
        of_one = uses.pop(name)
        first: Any = of_one[0]
        if len(of_one) == 1 and isinstance(first, _Outer) and first.left.shape[1] == 1:
            left, right = _wide(first.left[:, 0]), _wide(first.right[:, 0])
            found[name] = (left.square().T @ right.square()).view(first.shape)
        else:
            found[name] = torch.linalg.vector_norm(_wide(sum_of(of_one)), dim=0).square()
    return found


def labelled_batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yields ``(inputs, targets)`` of a DataLoader (in its own batches), a data set, or a pair of tensors."""
    if isinstance(data, DataLoader) or not hasattr(data, "__getitem__"):
        for batch in data:
            yield split_target(batch)
        return
    for inputs, targets, _ in batches(as_dataset(data), batch_size):
        yield inputs, targets


@checked
def default_example_loss(model: nn.Module) -> ExampleLoss:
    """Returns the loss of each example ``(batch,)`` that fits the targets, see ``per_example_grads``.

    Args:
        model: what is asked for is whether it is a causal language model, whose targets are shifted by one.

    Raises:
        TypeError: no module.
        ValueError: when it is called: real targets of another size than the outputs.

    Example:
        >>> default_example_loss(nn.Linear(2, 3))(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
        tensor([1.0986, 1.0986, 1.0986, 1.0986])
    """
    config = getattr(model, "config", None)
    causal = config is not None and not getattr(config, "is_encoder_decoder", False)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            if outputs.numel() != targets.numel():
                raise ValueError(f"outputs {tuple(outputs.shape)} do not match targets {tuple(targets.shape)}")
            return (outputs - targets.reshape(outputs.shape).to(outputs.dtype)).square().flatten(1).mean(1)
        if targets.ndim == 1:
            return F.cross_entropy(outputs, targets, reduction="none")
        if causal:
            outputs, targets = outputs[:, :-1], targets[:, 1:]
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        return losses.sum(1) / (targets != -100).sum(1).clamp(min=1)

    return loss


# --- the general paths ----------------------------------------------------------------------------------------------


def _by_vmap(model: nn.Module, inputs: Any, targets: Tensor, loss: ExampleLoss, names: list[str]) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    fixed = {n: p.detach() for n, p in own.items() if n not in set(names)} | dict(model.named_buffers())

    def of_one(chosen: dict[str, Tensor], example: Any, target: Tensor) -> Tensor:
        wrapped = _mapped(lambda value: value.unsqueeze(0), example)

        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, {**fixed, **chosen}, args, kwargs)

        return _checked_losses(loss(forward(call, wrapped), target.unsqueeze(0)), target.unsqueeze(0))[0]

    chosen = {name: own[name].detach() for name in names}
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels would run in a loop
        return torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))(chosen, inputs, targets)


def _by_loop(model: nn.Module, inputs: Any, targets: Tensor, loss: ExampleLoss, names: list[str]) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    chosen = [own[name] for name in names]
    rows = []
    for number in range(len(targets)):
        part = slice(number, number + 1)
        with torch.enable_grad():
            one = _mapped(lambda value, part=part: value[part], inputs)  # type: ignore[misc]
            value = _checked_losses(loss(forward(model, one), targets[part]), targets[part]).sum()
        found = torch.autograd.grad(value, chosen, allow_unused=True) if value.requires_grad else [None] * len(chosen)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(chosen, found, strict=True)])
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _mapped(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: _mapped(function, value) for name, value in inputs.items()}
    return tuple(_mapped(function, value) for value in inputs)


def _selected(model: nn.Module, params: Callable[[str], bool] | None) -> list[str]:
    names = [name for name, p in model.named_parameters() if p.requires_grad and (params is None or params(name))]
    if not names:
        raise ValueError("no parameter is selected: all are frozen, or params takes none of their names")
    return names


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} that uses the statistics of the batch: the "
                "gradient of a single example is undefined; call model.eval() first, or use another norm"
            )


def _prepared(model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Tensor]:
    targets = torch.as_tensor(targets)
    if targets.ndim == 0 or len(targets) == 0:
        raise ValueError("there is no example to take a gradient of")
    device = next((p.device for p in model.parameters()), targets.device)
    return inputs_for(model, inputs), targets.to(device)
