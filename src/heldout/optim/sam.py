"""Core: Sharpness-aware minimisation: step with the gradient found at the worst nearby weights.

Source: arXiv:2010.01412, algorithm 1.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from heldout.errors import check_steps_alone, checked
from heldout.method import Method, Run, Splits


class SAM(Optimizer):
    """Wraps an optimizer so that each step uses the gradient at ``w + rho * g / ||g||`` instead of at ``w``.

    The norm is taken over all parameters of all groups, so the perturbation does not depend on the scale of the loss.
    A gradient whose norm is zero or not finite perturbs nothing, and the step is the base optimizer's own. Parameter
    groups, state and state dict are the base optimizer's: schedulers may hold either object.

    A step costs two forward and backward passes, and one extra copy of the weights, which are put back exactly.
    Layers with running statistics (BatchNorm and all others that have ``track_running_stats``) do not update them in
    the second pass.

    Args:
        base_optimizer: the optimizer that makes the step, for example ``torch.optim.SGD(model.parameters(), lr=0.1)``.
        rho: radius of the perturbation, at least 0, for groups without a radius of their own. A group's radius is its
            entry "rho" ("sam_rho" if the base optimizer has an option called rho, as Adadelta does).
        model: switch the running statistics of this module only, directly. By default those of every module called
            during the second pass, by global hooks; a compiled model needs ``model``, since it bypasses such hooks.

    Raises:
        TypeError: ``base_optimizer`` is not an optimizer, is a SAM already, or evaluates the loss itself (LBFGS).
        ValueError: a negative or non-finite rho; at a step: a sparse gradient, or no closure.

    Example:
        With a closure, which is evaluated twice:

        >>> model = nn.Linear(2, 1)
        >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

        In two calls, for accumulated gradients; with a ``GradScaler``, which must own the last step, ``restore``
        followed by ``scaler.step(optimizer.base_optimizer)`` takes the place of ``second_step``:

        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.second_step(zero_grad=True)

    Source: arXiv:2010.01412, algorithm 1 and equation 2, p = 2.
    """

    @checked
    def __init__(self, base_optimizer: Optimizer, rho: float = 0.05, *, model: nn.Module | None = None) -> None:
        if not isinstance(base_optimizer, Optimizer) or isinstance(base_optimizer, SAM):
            raise TypeError(f"SAM wraps a torch Optimizer that is not a SAM, got {type(base_optimizer).__name__}")
        check_steps_alone(base_optimizer, "SAM")
        self.base_optimizer = base_optimizer
        self.rho = _checked(rho)
        self.model = model
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._statistics: _PausedStatistics | None = None
        for group in self.param_groups:
            _checked(group.setdefault(self._rho_key, self.rho))
        super().__setstate__({})  # gives an Optimizer made without Optimizer.__init__ its step hooks

    def __getstate__(self) -> dict[str, Any]:
        if self._statistics is not None:
            raise RuntimeError("the weights are perturbed: call second_step or restore before copying or pickling SAM")
        return {"base_optimizer": self.base_optimizer, "rho": self.rho, "model": self.model}

    @property
    def _rho_key(self) -> str:
        return "sam_rho" if "rho" in self.base_optimizer.defaults else "rho"

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults."""
        return self.base_optimizer.defaults

    def state_dict(self) -> dict[str, Any]:
        """Returns the base optimizer's state dict, whose groups carry their radius."""
        return self.base_optimizer.state_dict()

    @checked
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the state dict of a SAM, or one of its base optimizer alone (radii stay as they are)."""
        radii = [group[self._rho_key] for group in self.param_groups]
        self.base_optimizer.load_state_dict(dict(state_dict))
        for group, rho in zip(self.param_groups, radii):
            group.setdefault(self._rho_key, rho)

    @checked
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer; its radius is its entry "rho", or the constructor's."""
        _checked(param_group.setdefault(self._rho_key, self.rho))
        self.base_optimizer.add_param_group(param_group)

    @checked
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    @checked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Returns the closure's loss at the unperturbed weights, after a full step.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss. It is evaluated
                twice (once if the gradient's norm is zero or not finite). If it raises, the weights are put back.
        """
        if closure is None:
            raise ValueError("SAM evaluates the loss twice: pass step a closure, or call first_step and second_step")
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            if self._saved:
                with torch.enable_grad():
                    closure()
        finally:
            self.restore()
        self.base_optimizer.step()
        return loss

    @torch.no_grad()
    @checked
    def first_step(self, zero_grad: bool = False) -> None:
        """Moves the weights to ``w + rho * g / ||g||`` and pauses running statistics until ``second_step``."""
        if self._statistics is not None:
            raise RuntimeError("first_step was called twice: second_step or restore comes next")
        groups = []
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            rho = group.get(self._rho_key, self.rho)
            groups.append((-rho if group.get("maximize") else rho, moved, [p.grad for p in moved]))
        gradients = [gradient for *_, of_group in groups for gradient in of_group]
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError("SAM needs dense gradients, got a sparse one: make the Embedding with sparse=False")
        norm = _norm(gradients)
        if 0 < norm < math.inf:
            for rho, moved, of_group in groups:
                if moved:
                    self._saved += [(p, p.clone()) for p in moved]
                    torch._foreach_add_(moved, of_group, alpha=rho / norm)
        self._statistics = _PausedStatistics(self.model)
        if zero_grad:
            self.zero_grad()

    @checked
    def second_step(self, zero_grad: bool = False) -> None:
        """Puts the weights back and lets the base optimizer step with the gradients found since ``first_step``."""
        self.restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back exactly, keeps the gradients, and lets running statistics update again."""
        if self._statistics is None:
            raise RuntimeError("there is nothing to restore: first_step comes before second_step or restore")
        self._statistics.resume()
        self._statistics = None
        if self._saved:
            torch._foreach_copy_([p for p, _ in self._saved], [saved for _, saved in self._saved])
            self._saved = []


class _PausedStatistics:
    """Running statistics stay as they are from construction until ``resume``, or until nobody holds this object.

    With a model its layers are switched at once; without one each layer is switched around its own forward, by hooks
    of the whole process.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._switched: set[nn.Module] = set()
        hooks: list[RemovableHandle] = []
        self.resume = weakref.finalize(self, _resume, hooks, self._switched)
        if model is None:
            switched = self._switched
            hooks += [
                register_module_forward_pre_hook(lambda module, _: _switch_off(module, switched)),
                register_module_forward_hook(lambda module, *_: _switch_on(module, switched), always_call=True),
            ]
        else:
            for module in model.modules():
                _switch_off(module, self._switched)


def _switch_off(module: nn.Module, switched: set[nn.Module]) -> None:
    if module.training and module.__dict__.get("track_running_stats"):
        module.track_running_stats = False  # type: ignore[assignment]
        switched.add(module)


def _switch_on(module: nn.Module, switched: set[nn.Module]) -> None:
    if module in switched:
        module.track_running_stats = True  # type: ignore[assignment]
        switched.remove(module)


def _resume(hooks: list[RemovableHandle], switched: set[nn.Module]) -> None:
    for hook in hooks:
        hook.remove()
    for module in tuple(switched):
        _switch_on(module, switched)


def _norm(gradients: list[Tensor]) -> float:
    """The Euclidean norm over all gradients; one synchronisation with the device."""
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    dtype = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, dtype) for norm in norms])).item()


def _checked(rho: float) -> float:
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho must be finite and at least 0, got {rho}")
    return rho


@checked
def sam(rho: float = 0.05) -> Method:
    """Returns the Method that wraps the optimizer in ``SAM``; training costs twice the passes.

    Args:
        rho: radius of the perturbation; the paper uses 0.05 for most image data.

    Source: arXiv:2010.01412.

    Example:
        >>> sam(rho=0.1).name
        'sam'
    """
    _checked(rho)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        return SAM(base, rho)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if not any(p.requires_grad for p in module.parameters()):
            return "the model has no parameter that requires a gradient"
        if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in module.modules()):
            return "SAM needs dense gradients and the model has an Embedding with sparse=True"
        return None

    return Method("sam", optimizer=optimizer, check=check)
