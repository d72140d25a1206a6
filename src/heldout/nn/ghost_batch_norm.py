"""Ghost batch normalization: normalise a large batch in small virtual batches.

Large batches generalize worse partly because their normalization statistics carry less noise. Source:
arXiv:1705.08741, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heldout.errors import check_fraction, check_nonnegative, checked
from heldout.method import Method, Run, Splits

_LARGE_GHOST = 2**14  # values: from here on a call of torch's kernel for each ghost is the fastest


class _GhostBatchNorm(_BatchNorm):
    @checked
    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_nonnegative(eps=eps)
        check_fraction(momentum=momentum)
        if num_features < 1:
            raise ValueError(f"num_features must be positive, got {num_features}")
        _check_ghost_size(ghost_size, isinstance(self, nn.BatchNorm1d))
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.ghost_size = ghost_size

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got an input of shape {tuple(input.shape)}")
        if not self.training or len(input) <= self.ghost_size:
            return super().forward(input)
        positions, rest = input[0, 0].numel(), len(input) % self.ghost_size
        if rest * positions == 1:  # one value has no variance: it joins the ghost before it
            rest += self.ghost_size
        if rest == len(input):
            return super().forward(input)
        sizes = [self.ghost_size] * ((len(input) - rest) // self.ghost_size) + [rest] * (rest > 0)
        tracked = self.track_running_stats and self.running_mean is not None
        if _can_go_one_by_one(input, sizes, self.running_mean, self.weight):
            return _OneByOne.apply(input, self.weight, self.bias, sizes, self.eps, *self._next_ghosts(tracked, sizes))
        output, means, variances = _all(input, sizes, self.weight, self.bias, self.eps)
        if tracked:
            self._track(means, variances)
        return output

    def _next_ghosts(self, tracked: bool, sizes: list[int]) -> tuple[Tensor | None, Tensor | None, list[float]]:
        """Returns the running mean and variance that the ghosts are to move, and the momentum of each; counts them."""
        if not tracked:
            return None, None, [0.0] * len(sizes)
        assert self.num_batches_tracked is not None
        momenta = [self.momentum] * len(sizes)
        if self.momentum is None:  # the average over all batches
            seen = int(self.num_batches_tracked)
            momenta = [1 / (seen + number) for number in range(1, len(sizes) + 1)]
        self.num_batches_tracked.add_(len(sizes))
        return self.running_mean, self.running_var, momenta  # type: ignore[return-value]

    @torch.no_grad()
    def _track(self, means: Tensor, variances: Tensor) -> None:
        """Moves the running statistics as BatchNorm would over the ghosts (ghosts, channels) in order."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        ghosts, seen = len(means), int(self.num_batches_tracked)
        self.num_batches_tracked.add_(ghosts)
        if self.momentum is None:  # the average over all batches
            kept, weights = seen / (seen + ghosts), [1 / (seen + ghosts)] * ghosts
        else:
            kept = (1 - self.momentum) ** ghosts
            weights = [self.momentum * (1 - self.momentum) ** (ghosts - i) for i in range(1, ghosts + 1)]
        for running, values in ((self.running_mean, means), (self.running_var, variances)):
            running.mul_(kept).add_((values.new_tensor(weights) @ values).to(running))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that normalises each run of ``ghost_size`` examples by its own statistics while training.

    The affine parameters are shared, and the running statistics move once per ghost, in order of arrival. A batch
    that is no multiple of the ghost size ends in a smaller ghost (one single value joins the ghost before it).
    In eval mode, and where a batch is not larger than a ghost, it is ``nn.BatchNorm1d`` exactly; the state dict has
    the same keys. Costs the passes over the input that ``nn.BatchNorm1d`` does and a call for each ghost, or, where
    ghosts are small, a few vectorised passes; on other devices than the CPU two copies more.

    Args:
        num_features: number of channels C of an input ``(batch, C)`` or ``(batch, C, length)``.
        ghost_size: examples per ghost, at least 2.
        eps, momentum, affine, track_running_stats: as in ``nn.BatchNorm1d``.

    Raises:
        ValueError: ``ghost_size`` or ``num_features`` too small, or an input with other channels.

    Source: arXiv:1705.08741, algorithm 1. Deviation: the running variance is tracked (unbiased, as torch does), the
    paper tracks the standard deviation.

    Example:
        >>> norm = GhostBatchNorm1d(3, ghost_size=4)
        >>> norm(torch.randn(12, 3)).view(3, 4, 3).mean(dim=1).abs().max() < 1e-6
        tensor(True)
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics per ghost ``(ghost, C, height, width)``; see GhostBatchNorm1d.

    Example:
        >>> GhostBatchNorm2d(3, ghost_size=2)(torch.randn(4, 3, 5, 5)).shape
        torch.Size([4, 3, 5, 5])
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with statistics per ghost ``(ghost, C, depth, height, width)``; see GhostBatchNorm1d.

    Example:
        >>> GhostBatchNorm3d(3, ghost_size=2)(torch.randn(4, 3, 2, 5, 5)).shape
        torch.Size([4, 3, 2, 5, 5])
    """


_PLAIN: dict[type[_BatchNorm], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


@checked
def convert_ghost_batchnorm(module: nn.Module, ghost_size: int = 32) -> nn.Module:
    """Returns the module with every BatchNorm replaced, in place, by a ghost batch norm of the same state.

    Parameters stay the same objects, so an optimizer that holds them goes on working.

    Args:
        module: any module; one that is itself a BatchNorm is not changed, its replacement is returned.
        ghost_size: examples per ghost.

    Raises:
        ValueError: if there is no BatchNorm, a SyncBatchNorm, or a subclass with a forward pass of its own.

    Example:
        >>> convert_ghost_batchnorm(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), ghost_size=8)[1]
        GhostBatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, ...track_running_stats=True..., ghost_size=8)
    """
    if reason := _why_not(module):
        raise ValueError(reason)

    def ghost(norm: _BatchNorm) -> _BatchNorm:
        kind = next(kind for plain, kind in _PLAIN.items() if isinstance(norm, plain))
        return _with_state_of(norm, kind, ghost_size=ghost_size)

    return _replace(module, ghost)


@checked
def revert_ghost_batchnorm(module: nn.Module) -> nn.Module:
    """Returns the module with every ghost batch norm replaced, in place, by torch's own of the same state.

    Example:
        >>> revert_ghost_batchnorm(nn.Sequential(GhostBatchNorm1d(3)))[0].__class__.__name__
        'BatchNorm1d'
    """

    def plain(norm: _BatchNorm) -> _BatchNorm:
        if not isinstance(norm, _GhostBatchNorm):
            return norm
        return _with_state_of(norm, next(plain for plain in _PLAIN if isinstance(norm, plain)))

    return _replace(module, plain)


@checked
def ghost_batch_norm(ghost_size: int = 32) -> Method:
    """Returns the Method that trains with ghost batch norm in place of every BatchNorm.

    It acts where the batch size is larger than ``ghost_size``.

    Args:
        ghost_size: examples per ghost.

    Example:
        >>> ghost_batch_norm(ghost_size=16).name
        'ghost_batch_norm'
    """
    _check_ghost_size(ghost_size, one_dimensional=True)

    def model(run: Run, module: nn.Module) -> nn.Module:
        return convert_ghost_batchnorm(module, ghost_size)

    def check(module: nn.Module, splits: Splits) -> str | None:
        return _why_not(module)

    return Method("ghost_batch_norm", model=model, check=check)


def _can_go_one_by_one(input: Tensor, sizes: list[int], *states: Tensor | None) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.float64)
        and sizes[0] * input[0].numel() >= _LARGE_GHOST
        and all(state is None or state.dtype == input.dtype for state in states)
    )


def _all(
    input: Tensor, sizes: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalised input and the means and unbiased variances ``(ghosts, channels)``.

    ``sizes`` are the examples of each ghost: all the same, but for the last.
    """
    on_cpu = input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64)
    if on_cpu:
        weight = input.new_ones(input.shape[1]) if weight is None else weight.to(input.dtype)
        bias = input.new_zeros(input.shape[1]) if bias is None else bias.to(input.dtype)
    first = sizes[0] * (len(sizes) if sizes[0] == sizes[-1] else len(sizes) - 1)
    found = []
    for part, size in [(input[:first], sizes[0])] + ([(input[first:], sizes[-1])] if first < len(input) else []):
        if on_cpu:
            output, mean, variance = _AllAtOnce.apply(part, weight, bias, size, eps)
        else:
            output, mean, variance = _all_by_copy(part, size, weight, bias, eps)
        count = size * part[0, 0].numel()
        found.append((output, mean, variance * (count / (count - 1))))
    return found[0] if len(found) == 1 else tuple(torch.cat(each) for each in zip(*found, strict=True))  # type: ignore[return-value]


def _all_by_copy(
    input: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises by one batch norm over ghosts * channels channels, which needs the input in another order."""
    ghosts, channels = len(input) // size, input.shape[1]
    shape = (ghosts, size, *input.shape[1:])
    folded = input.view(shape).transpose(0, 1).reshape(size, ghosts * channels, *input.shape[2:])
    exact = torch.promote_types(input.dtype, torch.float32)
    scale, shift = (None if part is None else part.to(exact).repeat(ghosts) for part in (weight, bias))
    mean = torch.zeros(ghosts * channels, dtype=exact, device=input.device)
    variance = torch.zeros_like(mean)
    output = F.batch_norm(folded, mean, variance, scale, shift, training=True, momentum=1.0, eps=eps)
    output = output.view(size, ghosts, *input.shape[1:]).transpose(0, 1).reshape(input.shape)
    values = folded[:, 0].numel()
    return output, mean.view(ghosts, channels), variance.view(ghosts, channels) * ((values - 1) / values)


class _OneByOne(torch.autograd.Function):
    """Large ghosts: torch's kernel on one after the other, while it is in the cache, into one output.

    A batch norm of the whole batch reads it from memory twice, and so is no faster where the batch outgrows the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        sizes: list[int],
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momenta: list[float],
    ) -> Tensor:
        output = torch.empty_like(input)
        saved = input.new_empty(2, len(sizes), input.shape[1])
        means, inverses = (rows.unbind() for rows in saved)
        parts = zip(input.split(sizes), momenta, output.split(sizes), means, inverses, strict=True)
        for values, momentum, *out in parts:
            torch.native_batch_norm(values, weight, bias, running_mean, running_var, True, momentum, eps, out=out)
        ctx.save_for_backward(input, weight, bias, saved)
        ctx.sizes, ctx.eps = sizes, eps
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            return (*_differentiable_backward(input, weight, bias, ctx.sizes, ctx.eps, grads[0]), *[None] * 5)
        grad_input, of_weight, of_bias = torch.empty_like(input), [], []
        wanted = [True, weight is not None, bias is not None]
        means, inverses = (rows.unbind() for rows in saved)
        parts = (part.split(ctx.sizes) for part in (grads[0], input, grad_input))
        for grad, values, out, mean, inverse in zip(*parts, means, inverses, strict=True):
            found = torch.ops.aten.native_batch_norm_backward(
                grad, values, weight, None, None, mean, inverse, True, ctx.eps, wanted
            )
            out.copy_(found[0])
            of_weight.append(found[1])
            of_bias.append(found[2])
        grad_weight = torch.stack(of_weight).sum(dim=0) if weight is not None else None
        grad_bias = torch.stack(of_bias).sum(dim=0) if bias is not None else None
        return (grad_input, grad_weight, grad_bias, *[None] * 5)


def _differentiable_backward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    parts = [F.batch_norm(part, None, None, weight, bias, training=True, eps=eps) for part in input.split(sizes)]
    wanted = [part is not None and part.requires_grad for part in (input, weight, bias)]
    sources = [part for part, want in zip((input, weight, bias), wanted, strict=True) if part is not None and want]
    found = iter(torch.autograd.grad(torch.cat(parts), sources, grad, create_graph=True))
    grads = [next(found) if want else None for want in wanted]
    return grads[0], grads[1], grads[2]


class _AllAtOnce(torch.autograd.Function):
    """Small ghosts of one size: all at once, without reordering the input.

    torch's kernels give the sums over each example's positions in one pass, as if examples were channels.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = _by_ghost(input, size)
        if values.ndim == 4:
            rows = (1, -1, values.shape[3])
            means, variances = torch.ops.aten.batch_norm_update_stats(values.view(rows), None, None, 0)
            means, variances = means.view(values.shape[:3]), variances.view(values.shape[:3])
            mean = means.mean(dim=1)
            variance = (variances + (means - mean[:, None]).square_()).mean(dim=1)
            output = torch.empty_like(values)
        else:
            mean = values.mean(dim=1)
            output = values - mean[:, None]
            variance = output.mul_(output).mean(dim=1)
        scale = (variance + eps).rsqrt() * weight
        torch.addcmul(_like(values, bias - mean * scale), values, _like(values, scale), out=output)
        ctx.save_for_backward(input, weight, bias, mean, variance)
        ctx.size, ctx.eps = size, eps
        ctx.mark_non_differentiable(mean, variance)
        return output.view(input.shape), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            sizes = [ctx.size] * (len(input) // ctx.size)
            return (*_differentiable_backward(input, weight, bias, sizes, ctx.eps, grads[0]), None, None)
        values = _by_ghost(input, ctx.size)
        grad = _by_ghost(grads[0], ctx.size)
        inverse = (variance + ctx.eps).rsqrt()
        if values.ndim == 4:
            rows = (1, -1, values.shape[3])
            each = [part[:, None].expand(values.shape[:3]).reshape(-1) for part in (mean, variance)]
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad.view(rows), values.view(rows), None, *each, None, None, False, ctx.eps, [False, True, True]
            )
            grad_weight, grad_bias = grad_weight.view(values.shape[:3]).sum(1), grad_bias.view(values.shape[:3]).sum(1)
            grad_input = torch.empty_like(values)
        else:
            grad_bias = grad.sum(dim=1)
            grad_input = values - mean[:, None]
            grad_weight = grad_input.mul_(grad).sum(dim=1) * inverse
        scale = inverse * weight
        count = values[0, :, 0].numel()
        slope = scale * grad_weight * inverse / -count
        offset = scale * grad_bias / -count - slope * mean
        torch.addcmul(_like(values, offset), values, _like(values, slope), out=grad_input)
        grad_input.addcmul_(grad, _like(values, scale))
        return grad_input.view(input.shape), grad_weight.sum(dim=0), grad_bias.sum(dim=0), None, None


def _by_ghost(input: Tensor, size: int) -> Tensor:
    """Returns ``(ghosts, size, channels)``, with a last dimension for the positions where there are several."""
    shape = (len(input) // size, size, input.shape[1])
    return input.contiguous().view(shape if input[0, 0].numel() == 1 else (*shape, -1))


def _like(values: Tensor, part: Tensor) -> Tensor:
    """Returns ``(ghosts, channels)`` in a shape that broadcasts to the values by ghost."""
    return part[:, None] if values.ndim == 3 else part[:, None, :, None]


def _check_ghost_size(ghost_size: int, one_dimensional: bool) -> None:
    least = 2 if one_dimensional else 1
    if ghost_size < least:
        raise ValueError(f"ghost_size must be at least {least}, got {ghost_size}")


def _why_not(module: nn.Module) -> str | None:
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    if not norms:
        return f"ghost batch norm needs a model with BatchNorm, {type(module).__name__} has none"
    for norm in norms:
        if isinstance(norm, nn.SyncBatchNorm):
            return "SyncBatchNorm normalises over all processes, the opposite of ghost batch norm; use BatchNorm"
        plain = type(norm).forward in (_BatchNorm.forward, _GhostBatchNorm.forward)
        if not plain or not isinstance(norm, tuple(_PLAIN)):
            return f"{type(norm).__name__} is not torch's own BatchNorm and cannot be replaced by ghost batch norm"
    return None


def _replace(module: nn.Module, new: Any) -> nn.Module:
    replacements = {norm: new(norm) for norm in module.modules() if isinstance(norm, _BatchNorm)}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(module, module)  # type: ignore[call-overload]


def _with_state_of(norm: _BatchNorm, kind: type[_BatchNorm], **options: Any) -> _BatchNorm:
    other = kind(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine,
        track_running_stats=norm.track_running_stats, device="meta", **options,
    )  # fmt: skip
    other._parameters, other._buffers = norm._parameters, norm._buffers
    return other.train(norm.training)
