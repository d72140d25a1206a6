"""Architecture search by gradient descent: weights learn one half of the data, architecture parameters the other.

Source: arXiv:1806.09055 (DARTS), algorithm 1 and equations 5 to 8; arXiv:1903.09900 (sharpDARTS), section 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from heldout.errors import check_nonnegative, check_positive, check_tensors, checked
from heldout.method import device_of
from heldout.nn import architecture_entropy, architecture_parameters, inputs_for

_LENGTH = 0.01  # by which the weights are moved for the finite difference: the paper's eps is 0.01 / ||gradient||


class DifferentiableSearch:
    """Alternates an architecture step on validation data with a weight step on training data, in place.

    The architecture step descends the validation loss, by Adam, for the weights as they are (first order), or for the
    weights one SGD step ahead (``unrolled``): ``grad_a L_val(w') - xi * grad_aw L_train(w) grad_w' L_val(w')``,
    ``w' = w - xi * grad_w L_train(w)``, the product of the mixed derivative by a central difference over weights moved
    by 0.01 to either side. xi is the weight optimizer's learning rate. BatchNorm's running statistics are moved by
    weight steps alone, and the passes over one training batch drop out the same units.

    A weight step costs one forward and backward pass; an architecture step one more, unrolled four more.

    Args:
        model: with architecture parameters: ``SearchNetwork``, ``MultiChannelNetwork``, any model with a ``MixedOp``.
        train_loader, val_loader: give batches ``(inputs, targets)``; each can be iterated again. The validation
            batches start anew where they are fewer.
        arch_lr: of Adam with betas (0.5, 0.999).
        unrolled: second order.
        optimizer: of the weights, gets them: a torch Optimizer class, a ``functools.partial`` of one, any function.
            Default: SGD of learning rate 0.025, momentum 0.9, weight decay 3e-4. A scheduler may hold
            ``search.optimizer``.
        loss: ``(outputs, targets) -> scalar``.
        arch_weight_decay: added to the architecture parameters' gradient.
        max_grad_norm: the weights' gradient is clipped to it; None: never.

    Raises:
        ValueError: the model has no architecture parameters or no others, a rate that is not positive; at a step: a
            loader without a batch, a loss that is not finite.

    Deviation: the released code's w' has the momentum and the weight decay of SGD, too.

    Source: arXiv:1806.09055, algorithm 1.

    Example:
        >>> from heldout.nn import MixedOp
        >>> mixed = MixedOp([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh())])
        >>> model = nn.Sequential(mixed, nn.Linear(2, 2))
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> batches = [(x, (x[:, 0] > 0).long())]
        >>> search = DifferentiableSearch(model, batches, batches, arch_lr=0.1, unrolled=True)
        >>> sorted(search.epoch())
        ['entropy', 'train_loss', 'val_loss']
        >>> search.epochs
        1
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        *,
        arch_lr: float = 3e-4,
        unrolled: bool = False,
        optimizer: Callable[..., Optimizer] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        arch_weight_decay: float = 1e-3,
        max_grad_norm: float | None = 5.0,
    ) -> None:
        check_positive(arch_lr=arch_lr, max_grad_norm=max_grad_norm)
        check_nonnegative(arch_weight_decay=arch_weight_decay)
        found = {id(p) for p in architecture_parameters(model)}
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._arch: dict[str, Tensor] = {name: p for name, p in named if id(p) in found}
        self._weights: dict[str, Tensor] = {name: p for name, p in named if id(p) not in found}
        if not self._weights:
            raise ValueError("model has no weights that require a gradient besides its architecture parameters")
        if not self._arch:
            raise ValueError("model has no architecture parameters that require a gradient")
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.loss, self.unrolled, self.max_grad_norm = loss, unrolled, max_grad_norm
        make = optimizer or functools.partial(torch.optim.SGD, lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.optimizer = make(list(self._weights.values()))
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer must give a torch Optimizer, got {type(self.optimizer).__name__}")
        self.arch_optimizer = torch.optim.Adam(
            list(self._arch.values()), lr=arch_lr, betas=(0.5, 0.999), weight_decay=arch_weight_decay
        )
        self.epochs = 0

    def epoch(self) -> dict[str, float]:
        """Runs once over the training batches, a step of both kinds for each, in training mode.

        Returns:
            ``train_loss`` and ``val_loss`` (of the validation batches, before their steps), means over the steps, and
            ``entropy``, the mean normalised entropy of the architecture weights after the last.
        """
        self.model.train()
        total, steps = torch.zeros(2, device=device_of(self.model)), 0
        validation: Iterator[Any] = iter(())
        for train_batch in self.train_loader:
            try:
                val_batch = next(validation)
            except StopIteration:
                validation = iter(self.val_loader)
                try:
                    val_batch = next(validation)
                except StopIteration:
                    raise ValueError("val_loader has no batch") from None
            total += torch.stack(self.step(train_batch, val_batch))
            steps += 1
        if not steps:
            raise ValueError("train_loader has no batch")
        train_loss, val_loss = (total / steps).tolist()
        if not total.isfinite().all():
            raise ValueError(f"loss must be finite, got {train_loss} in training and {val_loss} in validation")
        self.epochs += 1
        return {"train_loss": train_loss, "val_loss": val_loss, "entropy": architecture_entropy(self.model)}

    @checked
    def step(self, train_batch: Any, val_batch: Any) -> tuple[Tensor, Tensor]:
        """Takes an architecture step, then a weight step; returns the training and the validation loss, detached.

        Args:
            train_batch, val_batch: pairs ``(inputs, targets)``, moved to the model's device.
        """
        train, val = self._batch(train_batch, "train_batch"), self._batch(val_batch, "val_batch")
        gradients, val_loss = self.arch_gradient(train, val)
        for parameter, gradient in zip(self._arch.values(), gradients, strict=True):
            parameter.grad = gradient
        self.arch_optimizer.step()
        self.arch_optimizer.zero_grad()
        self.optimizer.zero_grad()
        train_loss = self.loss(self.model(train[0]), train[1])
        weights = list(self._weights.values())
        found = torch.autograd.grad(train_loss, weights, allow_unused=True)
        for parameter, gradient in zip(weights, found, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return train_loss.detach(), val_loss

    @checked
    def arch_gradient(self, train_batch: Any, val_batch: Any) -> tuple[list[Tensor], Tensor]:
        """Returns the gradient of each architecture parameter, and the validation loss; changes nothing.

        Args:
            train_batch, val_batch: pairs ``(inputs, targets)``; the first matters where the search is unrolled.
        """
        train, val = self._batch(train_batch, "train_batch"), self._batch(val_batch, "val_batch")
        arch, weights = list(self._arch.values()), list(self._weights.values())
        if not self.unrolled:
            loss = self._loss_at(None, val)
            return _dense(torch.autograd.grad(loss, arch, allow_unused=True), arch), loss.detach()
        rate_of = {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        rates = [rate_of.get(id(p), 0.0) for p in weights]
        before = _random_state(arch[0].device)
        ahead = self._gradient(weights, weights, train)
        moved = [(p - rate * g).detach().requires_grad_() for p, rate, g in zip(weights, rates, ahead, strict=True)]
        loss = self._loss_at(moved, val)
        found = torch.autograd.grad(loss, [*arch, *moved], allow_unused=True)
        direct, vector = _dense(found[: len(arch)], arch), _dense(found[len(arch) :], weights)
        direction = [rate * each for rate, each in zip(rates, vector, strict=True)]  # each group has its own rate
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction))).item()
        if norm == 0:
            return direct, loss.detach()
        eps, ends = _LENGTH / norm, []
        for sign in (1, -1):
            with torch.no_grad():
                there = torch._foreach_add(weights, direction, alpha=sign * eps)
            with _replayed(before, arch[0].device):
                ends.append(self._gradient(list(there), arch, train))
        mixed = torch._foreach_div(torch._foreach_sub(ends[0], ends[1]), 2 * eps)
        return list(torch._foreach_sub(direct, mixed)), loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state between two epochs: model, both optimizers, how many epochs. Loaders keep their own."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "epochs": self.epochs,
        }

    @checked
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts a state back; the search goes on as it would have from there."""
        if missing := {"model", "optimizer", "arch_optimizer", "epochs"} - set(state_dict):
            raise ValueError(f"state_dict must be that of a DifferentiableSearch, it lacks {min(missing)!r}")
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.arch_optimizer.load_state_dict(state_dict["arch_optimizer"])
        self.epochs = int(state_dict["epochs"])

    def _gradient(self, weights: list[Tensor], of: list[Tensor], batch: tuple[Any, Tensor]) -> list[Tensor]:
        return _dense(torch.autograd.grad(self._loss_at(weights, batch), of, allow_unused=True), of)

    def _loss_at(self, weights: Iterable[Tensor] | None, batch: tuple[Any, Tensor]) -> Tensor:
        """The loss for these weights; buffers, such as running statistics, are copies and stay what they were."""
        state = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        if weights is not None:
            state |= dict(zip(self._weights, weights, strict=True))
        return self.loss(functional_call(self.model, state, (batch[0],)), batch[1])

    def _batch(self, batch: Any, name: str) -> tuple[Any, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"{name} must be a pair (inputs, targets), got {type(batch).__name__}")
        check_tensors(**{name: batch[1]})
        return inputs_for(self.model, batch[0]), batch[1].to(device_of(self.model))


def _dense(gradients: Iterable[Tensor | None], of: Iterable[Tensor]) -> list[Tensor]:
    """Zeros for what the loss does not depend on."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, of, strict=True)]


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _replayed(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """The random numbers that followed this state, and afterwards those that would have followed otherwise."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
