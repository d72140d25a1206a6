"""Networks of one hidden layer grown by gradient boosting, a group of units at a time.

Source: arXiv:1909.12098 (Emami and Martinez-Munoz, IEEE Access 2023).

deviation: for given hidden weights the output weights are solved for (ridge regression), and L-BFGS moves the hidden
weights alone; the objective is that of the paper's regressor (half the mean squared error and L2), its minima are the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from torch import Tensor, nn

from heldout.data import gather, predict_all
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.method import Method, Run, Splits, as_dataset, evaluating, forward
from heldout.nn import ACTIVATIONS, AnytimeMLP, inputs_for, split_head
from heldout.train.boosting.losses import BoostingLoss, ObjectiveLoss, SoftmaxLoss, SquaredLoss
from heldout.train.supervised import seeded

Array = NDArray[Any]

Step = Literal["guarded", "newton", "fixed"]
HALVINGS = 30
LARGEST = 1e12  # output of a network that is still learning
_TOLERANCE = 1e-5  # of the gradient, where L-BFGS ends
_ACT: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    # the activation, in place, and its derivative in terms of its value
    "sigmoid": (lambda z: 0.5 * (1 + np.tanh(0.5 * z)), lambda h: h * (1 - h)),
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(float)),
}


@checked
def boosted_network(
    features: Tensor,
    targets: Any,
    loss: BoostingLoss,
    *,
    total_units: int = 100,
    units_per_step: int = 1,
    learning_rate: float = 1.0,
    subsample: float = 0.5,
    activation: str = "sigmoid",
    max_iter: int = 200,
    l2: float = 1e-4,
    step: Step = "guarded",
    seed: int = 0,
) -> tuple[AnytimeMLP, list[float]]:
    """Returns a network whose hidden units were added group by group, and the training loss after 0, 1, 2 ... groups.

    Each group is a small network fitted by least squares to the negative gradient of the loss at the outputs so far,
    on a random part of the rows; it is added with a step that one iteration of Newton's method chooses on all rows.
    The sum is one ordinary network, exactly. Everything is computed in float64 on the CPU: a group costs some tens of
    passes over its rows.

    Args:
        features: ``(n, dim)``, standardised: a sigmoid of large numbers does not learn.
        targets: what the loss takes, of n examples.
        loss: see ``heldout.train.BoostingLoss``.
        total_units: hidden units in all; the paper's default is 200, its tables have 100.
        units_per_step: hidden units of each group.
        learning_rate: multiplies each step, at least 0.
        subsample: share of the rows that each group is fitted to, drawn without replacement, in (0, 1].
        activation: "sigmoid", "tanh" or "relu".
        max_iter: iterations of L-BFGS for each group.
        l2: weight decay of a group's weights, as scikit-learn's ``alpha``.
        step: "newton", the paper's; "guarded", the same, but halved while it would raise the training loss, as it can
            where most examples are fitted; "fixed", the learning rate itself (an ablation).
        seed: of the initial weights and the rows.

    Raises:
        ValueError: an option out of range, ``units_per_step`` that does not divide ``total_units``, or features or
            targets that are not finite.
        FloatingPointError: outputs that diverge, as they can with fixed steps.

    Source: arXiv:1909.12098, algorithm 1.

    Example:
        >>> x = torch.linspace(-2, 2, 40)[:, None]
        >>> network, losses = boosted_network(x, torch.sin(2 * x).numpy(), SquaredLoss(), total_units=10)
        >>> len(losses), losses[-1] < 0.1 * losses[0], (network(x) - torch.sin(2 * x)).abs().max() < 0.5
        (11, True, tensor(True))
    """
    check_dimensions(2, features=features)
    check_nonempty(features=features)
    check_finite(features=features, targets=targets)
    check_same_length(features=features, targets=targets)
    _check_options(total_units, units_per_step, learning_rate, subsample, activation, max_iter, l2)
    check_one_of(get_args(Step), step=step)
    check_at_least(0, seed=seed)
    x = features.detach().double().cpu().numpy()
    rng = np.random.default_rng(seed)
    outputs = np.tile(loss.initial(targets), (len(x), 1))
    groups, rows = total_units // units_per_step, max(2, round(subsample * len(x)))
    hidden, shifts, weights, biases = [], [], [], [outputs[0].copy()]
    losses = [loss.value(outputs, targets)]
    for _ in range(groups):
        residuals = loss.negative_gradient(outputs, targets)
        chosen = rng.permutation(len(x))[:rows] if rows < len(x) else slice(None)
        v, c, w, b = _fit_group(x[chosen], residuals[chosen], units_per_step, activation, max_iter, l2, rng)
        direction = _ACT[activation][0](x @ v.T + c) @ w + b
        length = learning_rate * (1.0 if step == "fixed" else loss.newton_step(outputs, targets, direction))
        if step == "guarded":
            length = _guarded(loss, outputs, targets, direction, length, losses[-1])
        outputs = outputs + length * direction
        hidden.append(v)
        shifts.append(c)
        weights.append(length * w)
        biases.append(length * b)
        losses.append(loss.value(outputs, targets))
        if not np.isfinite(losses[-1]) or np.abs(outputs).max() > LARGEST:
            raise FloatingPointError(f"the outputs diverge after {len(hidden)} groups: take a smaller learning_rate")
    with seeded(seed):  # torch's own initial weights, which are replaced
        network = AnytimeMLP(x.shape[1], outputs.shape[1], groups, units_per_step, activation).double()
    with torch.no_grad():
        network.hidden.weight.copy_(torch.from_numpy(np.concatenate(hidden)))
        network.hidden.bias.copy_(torch.from_numpy(np.concatenate(shifts)))
        network.output.weight.copy_(torch.from_numpy(np.concatenate(weights).T))
        network.biases.copy_(torch.from_numpy(np.stack(biases)))
    dtype = features.dtype if features.is_floating_point() else torch.get_default_dtype()
    return network.to(features.device, dtype), losses


def _guarded(loss: BoostingLoss, outputs: Array, targets: Any, direction: Array, length: float, before: float) -> float:
    """The length of a step, halved until the loss is no greater than before; 0 where that does not happen."""
    for _ in range(HALVINGS):
        if loss.value(outputs + length * direction, targets) <= before:
            return length
        length /= 2
    return 0.0


def _fit_group(
    x: Array, residuals: Array, units: int, activation: str, max_iter: int, l2: float, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Hidden weights ``(units, dim)`` and shifts, output weights ``(units, outputs)`` and bias, by least squares.

    Minimises ``|h(x) - r|^2 / (2 n outputs) + l2 (|V|^2 + |W|^2) / (2 n)``; W and b are functions of V and c.
    """
    (n, dim), outputs = x.shape, residuals.shape[1]
    act, slope = _ACT[activation]
    bound = np.sqrt((2.0 if activation == "sigmoid" else 6.0) / (dim + units))
    start = rng.uniform(-bound, bound, units * (dim + 1))
    mean = residuals.mean(0)
    centred = residuals - mean

    def solved(hidden: Array) -> tuple[Array, Array]:
        middle = hidden.mean(0)
        inner = hidden - middle
        gram = inner.T @ inner + max(l2 * outputs, 1e-10 * n) * np.eye(units)
        w = cho_solve(cho_factor(gram), inner.T @ centred)
        return w, mean - middle @ w

    def value_and_gradient(flat: Array) -> tuple[float, Array]:
        v, c = flat[: units * dim].reshape(units, dim), flat[units * dim :]
        hidden = act(x @ v.T + c)
        w, b = solved(hidden)
        error = (hidden @ w + b - residuals) / (n * outputs)
        back = error @ w.T * slope(hidden)
        gradient = np.concatenate([(back.T @ x + l2 / n * v).ravel(), back.sum(0)])
        value = n * outputs * (error**2).sum() / 2 + l2 / (2 * n) * ((v**2).sum() + (w**2).sum())
        return float(value), gradient

    options = {"maxiter": max_iter, "maxfun": 15_000, "gtol": _TOLERANCE * min(1.0, float(np.abs(centred).max()))}
    flat = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    v, c = flat[: units * dim].reshape(units, dim), flat[units * dim :]
    w, b = solved(act(x @ v.T + c))
    return v, c, w, b


def _check_options(
    total_units: int, units_per_step: int, learning_rate: float, subsample: float, activation: str, max_iter: int,
    l2: float,
) -> None:  # fmt: skip
    check_at_least(1, total_units=total_units, units_per_step=units_per_step, max_iter=max_iter)
    check_nonnegative(learning_rate=learning_rate, l2=l2)
    check_one_of(ACTIVATIONS, activation=activation)
    if total_units % units_per_step:
        raise ValueError(f"units_per_step must divide total_units, got {units_per_step} and {total_units}")
    if not 0 < subsample <= 1:
        raise ValueError(f"subsample must lie in (0, 1], got {subsample}")


@checked
def boost_head(
    encoder: Callable[[Any], Tensor],
    data: Any,
    loss: BoostingLoss | None = None,
    *,
    batch_size: int = 256,
    **options: Any,
) -> AnytimeMLP:
    """Returns a head grown by boosting on the features that a frozen encoder gives of a data set.

    Args:
        encoder: inputs to features ``(batch, dim)``: a module (taken in evaluation mode), or what ``split_head`` gives.
        data: ``(inputs, targets)``, a Dataset or a list of pairs: class indices, or real numbers.
        loss: default: cross-entropy of class indices, squared error of real numbers. ``ObjectiveLoss`` gets the
            targets as they are, another loss as an array.
        batch_size: of the encoder.
        options: of ``boosted_network``.

    Returns:
        a module on the features as they are: that they are standardised for the training is undone in its weights. In
        float32 a column whose mean is far larger than its deviation costs digits.

    Raises:
        ValueError: targets of no such kind, or options of ``boosted_network`` out of range.

    Source: arXiv:1909.12098, section on deep networks.

    Example:
        >>> x = torch.randn(60, 5)
        >>> head = boost_head(nn.Identity(), (x, (x[:, 0] > 0).long()), total_units=4)
        >>> nn.Sequential(nn.Identity(), head)(x).shape
        torch.Size([60, 2])
    """
    check_at_least(1, batch_size=batch_size)
    module = getattr(encoder, "module", encoder)
    dataset = as_dataset(data)
    if isinstance(module, nn.Module):
        with evaluating(module), torch.no_grad():
            features, targets = predict_all(lambda x: encoder(inputs_for(module, x)), dataset, batch_size)
    else:
        features, targets = predict_all(encoder, dataset, batch_size)
    check_dimensions(2, features=features)
    check_finite(features=features, targets=targets)
    check_same_length(features=features, targets=targets)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    standard = (features.double() - mean) / scale
    known: Any = targets
    if loss is None and targets.is_floating_point():
        loss, known = SquaredLoss(), targets.double().reshape(len(targets), -1)
    elif loss is None:
        check_dimensions(1, targets=targets)
        loss = SoftmaxLoss(int(targets.max()) + 1)
    if not isinstance(loss, ObjectiveLoss):
        known = known.cpu().numpy()
    network, _ = boosted_network(standard, known, loss, **options)
    with torch.no_grad():
        network.hidden.weight.div_(scale)
        network.hidden.bias.sub_(network.hidden.weight @ mean)
    return network.to(features) if features.is_floating_point() else network.float()


@checked
def gb_nn(
    total_units: int = 100,
    units_per_step: int = 1,
    *,
    learning_rate: float = 0.1,
    subsample: float = 0.5,
    activation: str = "sigmoid",
    l2: float = 1e-4,
) -> Method:
    """Returns the Method that replaces a trained model's last linear layer by a hidden layer grown by boosting.

    The network before that layer is left as it was trained; the loss is the recipe's own, on the training inputs
    without augmentation. ``fitted.module`` then holds an ``AnytimeMLP``, whose last groups can be left out:
    ``head.truncated(groups)``. Costs some tens of passes over the features of the training set for each group.

    Args:
        total_units: hidden units in all.
        units_per_step: hidden units of each group.
        learning_rate: multiplies each step; smaller than the estimator's 1, for the features were already fitted to
            the training labels.
        subsample: share of the examples that each group is fitted to.
        activation: "sigmoid", "tanh" or "relu".
        l2: weight decay of a group's weights.

    Raises:
        ValueError: an option out of range.

    Source: arXiv:1909.12098, section on deep networks.

    Example:
        >>> gb_nn(total_units=50).stages
        ('weights',)
    """
    _check_options(total_units, units_per_step, learning_rate, subsample, activation, 1, l2)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        inputs, _ = gather(run.splits.train, torch.arange(min(2, len(run.splits.train))))  # type: ignore[arg-type]
        encoder, head = split_head(module, inputs_for(module, inputs))
        new = boost_head(
            encoder,
            run.splits.train,
            ObjectiveLoss(run.objective, head.out_features, like=head.weight),
            total_units=total_units,
            units_per_step=units_per_step,
            learning_rate=learning_rate,
            subsample=subsample,
            activation=activation,
            l2=l2,
            seed=run.seed,
        ).to(head.weight)
        name = next(name for name, part in module.named_modules() if part is head)
        if not name:
            return new
        module.set_submodule(name, new)
        return module

    return Method("gb_nn", weights=weights, check=_why_no_linear_head)


def _why_no_linear_head(module: nn.Module, splits: Splits) -> str | None:
    """Why a hidden layer cannot take the place of the last linear one."""
    inputs, _ = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
    inputs = inputs_for(module, inputs)
    try:
        encoder, head = split_head(module, inputs)
    except ValueError as error:
        return str(error)
    with evaluating(module), torch.no_grad():
        expected = head(encoder(inputs)).sin()
        handle = head.register_forward_hook(lambda _module, _args, output: output.sin())
        try:
            found = forward(module, inputs)
        finally:
            handle.remove()
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        return "the model goes on behind its last linear layer: a hidden layer in its place would be another model"
    return None
