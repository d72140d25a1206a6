"""Per-example gradients of any model, and their random projections.

The gradient of a linear map for one example is an outer product of what entered the layer and of the gradient of what
left it, so one backward pass over the batch gives those of all examples. This holds for linear, convolution, embedding
and norm layers. A model with other parameters goes through ``torch.func.vmap``, and one that this cannot handle through
a loop over examples.

Floor: one forward and one backward pass of the batch, and one pass over the per-example gradients that are asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from heldout.data import batches, split_target
from heldout.method import as_dataset, evaluating, forward
from heldout.nn import inputs_for

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
Path = Literal["auto", "layers", "vmap", "loop"]
Projection = Literal["rademacher", "srht", "countsketch", "none"]

_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # of transformers, with a plain weight
_BLOCK = 4096  # parameters whose rows of a dense projection are drawn at once


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
    """Sums over examples by parameter name: the gradient, and the squared length of the examples' gradients."""

    gradient: dict[str, Tensor]
    squared: dict[str, float]
    examples: int


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
    """
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
    return GradientSums(total, squared, examples)


def labelled_batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yields ``(inputs, targets)`` of a DataLoader (in its own batches), a data set, or a pair of tensors."""
    if isinstance(data, DataLoader) or not hasattr(data, "__getitem__"):
        for batch in data:
            yield split_target(batch)
        return
    for inputs, targets, _ in batches(as_dataset(data), batch_size):
        yield inputs, targets


def default_example_loss(model: nn.Module) -> ExampleLoss:
    """Returns the loss of each example ``(batch,)`` that fits the targets, see ``per_example_grads``."""
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


# --- layer by layer -------------------------------------------------------------------------------------------------


class _NotByLayersError(Exception):
    """The forward pass does something that the layers alone do not tell."""


class _Use:
    """One use of a parameter in the forward pass of a batch."""

    def grads(self) -> Tensor:
        """The gradients ``(batch, *shape)``."""
        raise NotImplementedError

    def sum(self) -> Tensor:
        """Their sum over the batch."""
        return _wide(self.grads()).sum(0)

    def squared(self) -> Tensor:
        """Their squared lengths ``(batch,)``."""
        return _wide(self.grads().flatten(1)).square().sum(1)


class _Whole(_Use):
    def __init__(self, grad: Tensor) -> None:
        self._grad = grad

    def grads(self) -> Tensor:
        return self._grad


class _Outer(_Use):
    """Sums over positions of outer products of ``left (batch, positions, a)`` and ``right (batch, positions, b)``."""

    def __init__(self, left: Tensor, right: Tensor, shape: torch.Size) -> None:
        self.left, self.right, self.shape = left, right, shape

    def grads(self) -> Tensor:
        if self.left.shape[1] == 1:
            grads = self.left[:, 0, :, None] * self.right[:, 0, None]
        else:
            grads = torch.bmm(self.left.transpose(1, 2), self.right)
        return grads.view(len(grads), *self.shape)

    def sum(self) -> Tensor:
        return (_wide(self.left).flatten(0, 1).T @ _wide(self.right).flatten(0, 1)).view(self.shape)

    def squared(self) -> Tensor:
        left, right = _wide(self.left), _wide(self.right)
        positions, a, b = left.shape[1], left.shape[2], right.shape[2]
        if positions == 1:
            return left.square().sum((1, 2)) * right.square().sum((1, 2))
        if positions * (a + b) < a * b:  # the Gram matrices of positions are cheaper than the gradient
            return (torch.bmm(left, left.mT) * torch.bmm(right, right.mT)).sum((1, 2))
        return super().squared()


def _wide(values: Tensor) -> Tensor:
    """At least float32: in half precision squares underflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def sum_of(uses: list[_Use]) -> Tensor:
    """Returns the gradients ``(batch, *shape)`` of a parameter over all of its uses."""
    grads = uses[0].grads()
    for use in uses[1:]:
        grads = grads + use.grads()
    return grads


def _why_not_layers(model: nn.Module, names: list[str]) -> str | None:
    wanted = set(names)
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(prefix, recurse=False)]
        if wanted.intersection(own) and _rule(module) is None:
            return f"{prefix or 'the model'} is a {type(module).__name__} with parameters of its own"
        if "parametrizations" in module._modules:
            return f"{prefix or 'the model'} has parametrized weights"
    return None


Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, _Use]]


def _rule(module: nn.Module) -> Rule | None:
    """How a layer's gradients follow from its input and the gradient of its output."""
    if module._forward_pre_hooks and not isinstance(module, nn.Identity):
        return None  # what enters the layer is not what is recorded
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _transposed_linear
    if type(module).__name__ in _RMS_NORMS:
        return _norm
    return _RULES.get(type(module))


def _linear(module: nn.Module, entered: Tensor, grad: Tensor) -> dict[str, _Use]:
    left, right = grad.flatten(1, -2) if grad.ndim > 2 else grad[:, None], None
    right = entered.flatten(1, -2) if entered.ndim > 2 else entered[:, None]
    return {"weight": _Outer(left, right, module.weight.shape), "bias": _Whole(left.sum(1))}  # type: ignore[arg-type]


def _transposed_linear(module: nn.Module, entered: Tensor, grad: Tensor) -> dict[str, _Use]:
    uses = _linear(module, entered, grad)
    outer: Any = uses["weight"]
    return uses | {"weight": _Outer(outer.right, outer.left, outer.shape)}


def _convolution(module: Any, entered: Tensor, grad: Tensor) -> dict[str, _Use]:
    dims = len(module.kernel_size)
    uses: dict[str, _Use] = {"bias": _Whole(grad.flatten(2).sum(2))}
    patches = _patches(module, entered, dims)  # (batch, channels * kernel, positions)
    left = grad.flatten(2)
    if module.groups == 1:
        return uses | {"weight": _Outer(left.transpose(1, 2), patches.transpose(1, 2), module.weight.shape)}
    size, groups = len(entered), module.groups
    by_group = torch.bmm(
        left.reshape(size * groups, -1, left.shape[2]), patches.reshape(size * groups, -1, patches.shape[2]).mT
    )
    return uses | {"weight": _Whole(by_group.view(size, *module.weight.shape))}


def _patches(module: Any, entered: Tensor, dims: int) -> Tensor:
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    values = F.pad(entered, padding, mode=mode) if any(padding) else entered
    if dims == 1:
        values = values.unsqueeze(2)
    kernel, stride, dilation = (
        (1,) * (2 - dims) + tuple(x) for x in (module.kernel_size, module.stride, module.dilation)
    )
    if dims <= 2:
        return F.unfold(values, kernel, dilation=dilation, stride=stride)
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        values = values.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    # (batch, channels, positions of each axis, kernel of each axis)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return values.permute(order).flatten(1, 1 + dims).flatten(2)


def _embedding(module: Any, entered: Tensor, grad: Tensor) -> dict[str, _Use]:
    tokens, grad = entered.flatten(1), grad.reshape(len(entered), -1, grad.shape[-1])
    if module.padding_idx is not None:
        grad = grad.masked_fill((tokens == module.padding_idx)[..., None], 0)
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise ValueError("an embedding with scale_grad_by_freq or max_norm has no gradient of a single example")
    found = grad.new_zeros(len(tokens), *module.weight.shape)
    found.scatter_add_(1, tokens[..., None].expand_as(grad), grad)
    return {"weight": _Whole(found)}


def _norm(module: Any, entered: Tensor, grad: Tensor) -> dict[str, _Use]:
    with torch.no_grad():
        scaled = _without_affine(module, entered)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__ in _RMS_NORMS:
        axes = tuple(range(1, grad.ndim - module.weight.ndim))
    else:
        axes = tuple(range(2, grad.ndim))
    product = grad * scaled
    return {
        "weight": _Whole(product.sum(axes) if axes else product),
        "bias": _Whole(grad.sum(axes) if axes else grad),
    }


def _without_affine(module: Any, entered: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(entered, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(entered, module.normalized_shape, eps=module.eps)
    if type(module).__name__ in _RMS_NORMS:
        return F.rms_norm(entered, (entered.shape[-1],), eps=module.variance_epsilon)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(entered, module.num_groups, eps=module.eps)
    return F.batch_norm(entered, module.running_mean, module.running_var, eps=module.eps)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
    nn.GroupNorm: _norm,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
}


def _by_layers(
    model: nn.Module, inputs: Any, targets: Tensor, loss: ExampleLoss, names: list[str]
) -> dict[str, list[_Use]]:
    own = dict(model.named_parameters())
    name_of = {id(parameter): name for name, parameter in own.items()}
    wanted = {id(own[name]) for name in names}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        entered = args[0].detach()
        if len(entered) != len(targets):
            raise _NotByLayersError(
                f"a {type(module).__name__} gets {tuple(entered.shape)} in a batch of {len(targets)} examples"
            )
        calls.append((module, entered, output))
        return output.clone()  # so that what comes next may change it in place

    def repeated(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Positions that all examples share, once for each."""
        shared = len(args[0]) == 1 < len(targets)
        return (args[0].expand(len(targets), *args[0].shape[1:]), *args[1:]) if shared else args

    layers = [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(record) for module in layers]
    handles += [m.register_forward_pre_hook(repeated) for m in layers if isinstance(m, nn.Embedding)]
    try:
        with torch.enable_grad():
            losses = _checked_losses(loss(forward(model, inputs), targets), targets)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [output for _, _, output in calls]
    _check_uses([own[name] for name in names], losses, calls)
    gradients: tuple[Tensor | None, ...] = (None,) * len(outputs)
    if losses.requires_grad and outputs:
        gradients = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
    uses: dict[str, list[_Use]] = {name: [] for name in names}
    with torch.no_grad():
        for (module, entered, _), grad in zip(calls, gradients, strict=True):
            if grad is None:
                continue
            rule = _rule(module)
            assert rule is not None
            of_module = rule(module, entered, grad)
            for local, parameter in module.named_parameters(recurse=False):
                if id(parameter) in wanted:
                    uses[name_of[id(parameter)]].append(of_module[local])
    for name, found in uses.items():
        if not found:
            found.append(_Whole(own[name].new_zeros(len(targets), *own[name].shape)))
    return uses


def _check_uses(parameters: list[nn.Parameter], losses: Tensor, calls: list[tuple[nn.Module, Tensor, Tensor]]) -> None:
    """Raises where the graph uses a parameter otherwise than by the recorded calls of the layer that holds it."""
    recorded = Counter(id(p) for module, *_ in calls for p in module.parameters(recurse=False))
    found: Counter[int] = Counter()
    seen, waiting = set(), [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        for inner, _ in node.next_functions if node is not None else ():
            variable = getattr(inner, "variable", None)
            if variable is not None:
                found[id(variable)] += 1
            elif inner is not None and inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    for parameter in parameters:
        if found[id(parameter)] > recorded[id(parameter)]:
            raise _NotByLayersError(f"a parameter of shape {tuple(parameter.shape)} is used outside of its layer")


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


def _checked_losses(losses: Tensor, targets: Tensor) -> Tensor:
    if losses.shape != (len(targets),):
        raise ValueError(
            f"loss must return one value for each of {len(targets)} examples, it returns the shape "
            f"{tuple(losses.shape)}: pass one with reduction='none', and average over an example's own values only"
        )
    return losses


# --- projections ----------------------------------------------------------------------------------------------------


# Takes the gradients of a batch, ``(batch, n)`` for one parameter after the other, and returns ``(batch, dim)``.
Projector = Callable[[Iterator[Tensor]], Tensor]


def _projector(kind: Projection, size: int, dim: int, seed: int, device: torch.device) -> Projector:
    if kind == "none":
        return lambda parts: torch.cat(list(parts), dim=1)
    if kind == "countsketch":
        return _count_sketch(size, dim, seed, device)
    if kind == "srht":
        generator = torch.Generator().manual_seed(seed)
        padded = 1 << max(0, (max(size, dim) - 1).bit_length())
        sign = _signs((size,), (seed, 0), device)
        kept = torch.randperm(padded, generator=generator)[:dim].to(device)

        def srht(parts: Iterator[Tensor]) -> Tensor:
            flat = torch.cat(list(parts), dim=1)
            return _hadamard(F.pad(flat * sign, (0, padded - size)))[:, kept] / math.sqrt(dim)

        return srht

    def dense(parts: Iterator[Tensor]) -> Tensor:
        drawn, signs, total = -1, torch.empty(0), torch.empty(0)
        for number, place, piece in _pieces(parts, _BLOCK):
            if number != drawn:
                drawn, signs = number, _signs((_BLOCK, dim), (seed, number), device)
            total = total if len(total) else piece.new_zeros(len(piece), dim)
            total.addmm_(piece, signs[place : place + piece.shape[1]])
        return total / math.sqrt(dim)

    return dense


def _count_sketch(size: int, dim: int, seed: int, device: torch.device) -> Projector:
    """Every ``dim`` parameters in a row go to the ``dim`` places in their order, rotated by a random number of places.

    Two parameters share a place with a probability of at most ``1 / dim``, as if each were sent to a random one, and a
    batch of gradients is read once, in order.
    """
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(0, dim, (-(-size // dim),), generator=generator).tolist()
    sign = _signs((size,), (seed, 0), device)

    def project(parts: Iterator[Tensor]) -> Tensor:
        total, done = torch.empty(0), 0
        for number, place, piece in _pieces(parts, dim):
            total = total if len(total) else piece.new_zeros(len(piece), dim)
            count, first = piece.shape[1], (place + shifts[number]) % dim
            signs, fitting = sign[done : done + count], min(count, dim - first)
            total[:, first : first + fitting].addcmul_(piece[:, :fitting], signs[:fitting])
            if fitting < count:
                total[:, : count - fitting].addcmul_(piece[:, fitting:], signs[fitting:])
            done += count
        return total

    return project


def _pieces(parts: Iterator[Tensor], width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cuts what is in a row when all parts are joined into blocks: yields a block's number, a place in it, and columns.

    A block that goes over the end of a part comes in several pieces.
    """
    done = 0
    for part in parts:
        start, columns = 0, part.shape[1]
        while start < columns:
            place = (done + start) % width
            count = min(width - place, columns - start)
            yield (done + start) // width, place, part[:, start : start + count]
            start += count
        done += columns


def _signs(shape: tuple[int, ...], key: tuple[int, int], device: torch.device) -> Tensor:
    """Random signs as float32, the same for the same key everywhere."""
    count = math.prod(shape)
    drawn = np.random.Generator(np.random.Philox(key=list(key))).bytes(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count)
    return torch.from_numpy(bits).to(device, torch.float32).mul_(2).sub_(1).view(shape)


def _hadamard(values: Tensor) -> Tensor:
    """The unnormalised Walsh-Hadamard transform of each row, whose length is a power of two."""
    rows, length = values.shape
    half = 1
    while half < length:
        pairs = values.view(rows, -1, 2, half)
        values = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).view(
            rows, length
        )
        half *= 2
    return values
