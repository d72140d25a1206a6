"""Core: Per-example gradients layer by layer, from what entered each layer and the gradient of what left it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.method import forward

ExampleLoss = Callable[[Tensor, Tensor], Tensor]

_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # of transformers, with a plain weight


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


def _checked_losses(losses: Tensor, targets: Tensor) -> Tensor:
    if losses.shape != (len(targets),):
        raise ValueError(
            f"loss must return one value for each of {len(targets)} examples, it returns the shape "
            f"{tuple(losses.shape)}: pass one with reduction='none', and average over an example's own values only"
        )
    return losses
