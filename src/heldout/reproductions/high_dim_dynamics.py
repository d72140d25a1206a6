"""Dynamics of generalization (Advani, Saxe; arXiv:1710.03667): when do large models overfit, and when to stop them?

The paper solves gradient descent on linear regression in high dimension and claims: training too long hurts most when
there are as many examples as weights, and less in smaller and in larger models; with fewer examples than weights the
initial weights must be small; stopping early is nearly as good as the best L2 penalty; and large ReLU networks do not
overfit, for the same two reasons: a frozen subspace, and eigenvalues that are far from 0 again.

``linear``: 300 weights, alpha = examples / weights from 0.25 to 4, gradient flow up to t = 10,000 simulated on 20 draws
of the inputs, with 16 teachers on each; test error exact over inputs. ``deviation`` is the largest relative distance
from theory over alpha <= 0.75 and >= 1.33 and over times below 5 / the smallest eigenvalue, ``deviation_near_one`` over
alpha = 0.9, 1, 1.1; ``gap_to_theory`` the largest absolute one over all times of the first group.
``gradient descent``: plain steps on two problems against the flow. ``initial variance``: how the final error grows.

``relu``: 200 examples in 20 dimensions of a teacher of 5 hidden units, signal-to-noise ratio 3; students of 2 to 500
hidden units, 22 h + 1 weights, 5,000 full-batch steps of Adam. Weights start with variance 1 / fan-in ("large") or a
hundredth of it ("small"). ``widest_over_stopped`` is the final error of 500 units over the least error of any width at
any step on the test set, ``widest_over_own`` that over its own least.

``digits``: one-hot labels of 400 digits regressed on 50 to 4,000 random ReLU features by gradient flow. The predicted
curve takes the least-squares weights of all 1,797 digits for the truth and their residuals for noise, for up to 800
features; ``regret`` is what stopping at its best time loses, relatively. ``eigenvalue_recovery`` is how many powers of
ten the smallest nonzero eigenvalue of 4,000 features lies above that of 400.

The peak of a network is near "as many weights as examples" by count only; no theorem says so.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import frozen_subspace, mp_learning_curve, optimal_ridge, spectral_learning_curve
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure, lower_is_better
from heldout.tasks import TeacherStudent, digits, stratified_split, teacher_student

ALPHAS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.33, 2.0, 4.0)
SHOWN = (0.5, 1.0, 2.0)
LINEAR = {"smoke": (60, 4), "laptop": (300, 20)}  # dimension, draws
LATE = 1e4
TIMES = torch.from_numpy(np.concatenate([[0.0], np.geomspace(1e-2, LATE, 60)]))
TEACHERS = 16  # on each draw of X
WIDTHS = {"smoke": (2, 10, 50), "laptop": (2, 5, 10, 20, 40, 100, 200, 500)}
STEPS = {"smoke": 60, "laptop": 5000}
DIGITS = {
    "smoke": (100, (25, 50, 100, 200, 400)),
    "laptop": (400, (50, 100, 200, 300, 350, 400, 450, 500, 600, 800, 1600, 4000)),
}  # examples, widths
DIGIT_TIMES = torch.from_numpy(np.concatenate([[0.0], np.geomspace(1.0, 1e8, 49)]))
Rows = list[dict[str, Any]]


class Draws(NamedTuple):
    """Linear problems of one alpha in the bases of their eigenvectors; signal, noise and start have variance 1.

    On each of the draws of X there are several teachers, with their noise and initial weights.
    """

    eigenvalues: Tensor  # (draws, dim)
    w_bar: Tensor  # (draws, teachers, dim)
    start: Tensor  # (draws, teachers, dim)
    push: Tensor  # (draws, teachers, dim): X^T noise / n
    floor: Tensor  # mean square of the noise

    def errors(self, snr: float, inr: float, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean training and test error under gradient flow, ``(times,)``, test inputs averaged exactly."""
        first = inr**0.5 * self.start - self.w_bar
        push = snr**-0.5 * self.push
        last = self.gain * push  # w(infinity) - w_bar, outside of the frozen subspace
        d = (-t[:, None, None] * self.eigenvalues).exp()  # (times, draws, dim)
        square = d**2 * (first**2).mean(1) + (1 - d) ** 2 * (last**2).mean(1) + 2 * d * (1 - d) * (first * last).mean(1)
        along = d * (push * first).mean(1) + (1 - d) * (push * last).mean(1)
        train = (self.eigenvalues * square - 2 * along).sum(2).mean(1) + self.floor / snr
        return train, square.sum(2).mean(1) + 1 / snr

    @property
    def gain(self) -> Tensor:
        seen = self.eigenvalues > 1e-10
        return torch.where(seen, 1 / self.eigenvalues.where(seen, torch.ones(())), 0.0)[:, None]

    def ridge(self, snr: float, penalty: float) -> float:
        """Returns the mean test error of ridge regression."""
        distance = (snr**-0.5 * self.push - penalty * self.w_bar) / (self.eigenvalues[:, None] + penalty)
        return float((distance**2).sum(2).mean()) + 1 / snr


@functools.lru_cache(maxsize=1)
def linear_draws(seed: int, profile: str) -> dict[float, Draws]:
    """Returns the draws of each alpha: smaller ones see the first examples of the largest."""
    dim, number = LINEAR[profile]
    most = round(ALPHAS[-1] * dim)
    x = torch.stack([teacher_student("linear", dim, most, seed=1000 * seed + i).x for i in range(number)]).double()
    generator = torch.Generator().manual_seed(1000 * seed + 999)
    w_bar, start = torch.randn(2, number, TEACHERS, dim, generator=generator, dtype=torch.float64) / dim**0.5
    noise = torch.randn(number, most, TEACHERS, generator=generator, dtype=torch.float64)
    found = {}
    for alpha in ALPHAS:
        n = round(alpha * dim)
        seen, errors = x[:, :n], noise[:, :n]
        values, vectors = torch.linalg.eigh(seen.mT @ seen / n)
        push = (seen.mT @ errors / n).mT @ vectors
        found[alpha] = Draws(values.clamp(min=0), w_bar @ vectors, start @ vectors, push, (errors**2).mean())
    return found


def linear(snr: float | None, inr: float, seed: int, profile: str) -> dict[str, float]:
    snr = math.inf if snr is None else snr
    final, stopped, ridged, over_time = [], [], [], []
    deviations, absolute, train_deviations = {}, {}, []
    bounds: dict[str, list[float]] = {"gap": [], "subspace": [], "norm": []}
    for alpha, draws in linear_draws(seed, profile).items():
        theory = mp_learning_curve(alpha, snr, inr, TIMES)
        train, test = draws.errors(snr, inr, TIMES)
        seen = (1 - alpha**-0.5) ** 2 * TIMES <= 5
        deviations[alpha] = float((test / theory.test - 1)[seen].abs().max())
        absolute[alpha] = float((test - theory.test).abs().max())
        train_deviations.append(float(((train - theory.train) / theory.train[0]).abs().max()))
        final.append(float(test[-1]))
        log_curve("final test error over alpha", alpha, final[-1])
        if theory.t_opt < math.inf:
            stopped.append(float(draws.errors(snr, inr, torch.tensor([theory.t_opt]).double())[1]))
            ridged.append(draws.ridge(snr, optimal_ridge(alpha, snr).penalty))
            log_curve("early-stopped test error over alpha", alpha, stopped[-1])
        if alpha in SHOWN:
            over_time += rows(f"alpha = {alpha:g}", "theory", TIMES[1:], theory.test[1:])
            over_time += rows(f"alpha = {alpha:g}", "simulation", TIMES[1::3], test[1::3])
        for name, bound in complexities(draws, alpha, snr, inr).items():
            bounds[name].append(bound)
        bounds["gap"].append(float(test[-1] - train[-1]))
    if snr == 5:  # a report has room for these
        over_alpha = theory_rows(snr, inr) + rows(f"t = {LATE:,.0f}", "simulation", ALPHAS, final)
        over_alpha += rows("stopped at the best time", "simulation", ALPHAS, stopped)
        over_alpha += rows("best L2 penalty", "simulation", ALPHAS, ridged)
        log_figure("test error over alpha", figure(over_alpha, "alpha"))
        log_figure("test error over time", figure(over_time, "t"))
    near = (0.9, 1.0, 1.1)
    metrics = {
        "gap_to_theory": max(value for alpha, value in absolute.items() if alpha not in near),
        "train_deviation": max(train_deviations),
        "bound_rank": rank_correlation(bounds["subspace"], bounds["gap"]),
        "norm_rank": rank_correlation(bounds["norm"], bounds["gap"]),
    }
    if stopped:
        metrics |= {
            "deviation": max(value for alpha, value in deviations.items() if alpha not in near),
            "deviation_near_one": max(deviations[alpha] for alpha in near),
            "peak_distance": abs(ALPHAS[int(np.argmax(final))] - 1),
            "peak_ratio": max(final) / final[-1],
            "stopped_rise": max(later - earlier for earlier, later in itertools.pairwise(stopped)),
            "stopped_over_ridge": max(s / r for s, r in zip(stopped, ridged, strict=True)),
        }
    return metrics


def complexities(draws: Draws, alpha: float, snr: float, inr: float) -> dict[str, float]:
    """Returns the bound of ``subspace_bound`` after training, and the same for the length of the weights themselves."""
    start, last = inr**0.5 * draws.start, draws.w_bar + draws.gain * snr**-0.5 * draws.push
    change = (last - start) * (1 - (-LATE * draws.eigenvalues).exp())[:, None]
    scale = (draws.eigenvalues.sum(1) / (alpha * start.shape[2])).sqrt()[:, None]
    lengths = {"subspace": change.norm(dim=2), "norm": (start + change).norm(dim=2)}
    return {name: float((scale * length).mean()) for name, length in lengths.items()}


def theory_rows(snr: float, inr: float) -> Rows:
    """Lines of the figure over alpha."""
    alphas = np.concatenate([np.geomspace(0.2, 0.99, 40), [1.0], np.geomspace(1.01, 5, 40)])
    curves = [mp_learning_curve(alpha, snr, inr, TIMES[-1:]) for alpha in alphas]
    found = rows(f"t = {LATE:,.0f}", "theory", alphas, [float(curve.test) for curve in curves])
    for alpha, curve in zip(alphas, curves, strict=True):
        best = mp_learning_curve(alpha, snr, inr, np.array([curve.t_opt])).test
        found += rows("stopped at the best time", "theory", [alpha], best)
    found += rows("best L2 penalty", "theory", alphas, [optimal_ridge(alpha, snr).test for alpha in alphas])
    return found


def initial_variance(seed: int, profile: str) -> dict[str, float]:
    """By how much, relatively, the growth of the final error differs from ``(1 - alpha) inr``."""
    errors = []
    for alpha, draws in linear_draws(seed, profile).items():
        if alpha >= 1:
            continue
        mirrored = draws._replace(  # each start and its opposite
            start=torch.cat([draws.start, -draws.start], 1),
            w_bar=draws.w_bar.repeat(1, 2, 1),
            push=draws.push.repeat(1, 2, 1),
        )
        at = TIMES[-1:]
        small = float(mirrored.errors(5.0, 0.0, at)[1])
        for inr in (0.5, 1.0, 2.0, 4.0):
            growth = float(mirrored.errors(5.0, inr, at)[1]) - small
            log_curve(f"growth of the final error over inr, alpha = {alpha:g}", inr, growth)
            errors.append(abs(growth / ((1 - alpha) * inr) - 1))
    return {"slope_error": max(errors)}


def gradient_descent(seed: int, profile: str) -> dict[str, float]:
    """The largest relative difference of plain steps from gradient flow, on the same data."""
    dim, lr, worst = LINEAR[profile][0], 0.02, 0.0
    steps = 200 if profile == "smoke" else 5000
    for alpha in (0.5, 2.0):
        data = teacher_student("linear", dim, round(alpha * dim), snr=5.0, seed=seed)
        x, y, w_bar = data.x.double(), data.y.double(), data.weights.double()
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        push, weights = vectors.T @ (x.T @ y) / len(x), torch.zeros(dim).double()
        for step in range(1, steps + 1):
            weights -= lr * (x.T @ (x @ weights - y)) / len(x)
            if step % (steps // 50) == 0:
                growth = torch.where(values > 1e-10, -torch.expm1(-values * lr * step) / values, lr * step)
                flow = float((vectors @ (growth * push) - w_bar).square().sum()) + data.noise_var
                plain = float((weights - w_bar).square().sum()) + data.noise_var
                worst = max(worst, abs(plain / flow - 1))
                log_curve(f"test error over time, alpha = {alpha:g}", lr * step, plain)
    return {"step_difference": worst}


def relu(scale: float, seed: int, profile: str) -> dict[str, float]:
    data = teacher_student("relu", dim=20, n=200, hidden=5, snr=3.0, seed=seed)
    test, widths = data.sample(1000, seed=1_000_000 + seed), WIDTHS[profile]
    steps, train, errors = students(data, test, widths, scale, STEPS[profile], seed)
    final, stopped, fit = errors[-1], errors.min(0).values, train[-1]
    for name, values in (("final", final), ("early-stopped", stopped), ("training", fit)):
        for width, value in zip(widths, values, strict=True):
            log_curve(f"{name} error over width", width, float(value))
    named = (("final", final), ("best step", stopped), ("training, final", fit.clamp(min=0.01)))
    log_figure("error over width", figure([row for name, y in named for row in rows(name, "", widths, y)], "width"))
    over_time = [row for i in (2, -1) for row in rows(f"{widths[i]} units", "theory", steps[1:], errors[1:, i])]
    log_figure("test error over steps", figure(over_time, "step"))
    peak = int(final.argmax())
    return {
        "peak_width": float(widths[peak]),
        "peak_distance": abs(math.log(22 * widths[peak] + 1) - math.log(200)),
        "peak_ratio": float(final[peak] / final[-1]),
        "widest_error": float(final[-1]),
        "best_stopped": float(stopped.min()),
        "widest_over_stopped": float(final[-1] / stopped.min()),
        "widest_over_own": float(final[-1] / stopped[-1]),
        "largest_train_error": float(fit[[width >= 20 for width in widths]].max()),
    }


def students(data: TeacherStudent, test: TeacherStudent, widths: Sequence[int], scale: float, steps: int, seed: int,
             every: int = 50, lr: float = 0.01) -> tuple[list[int], Tensor, Tensor]:  # fmt: skip
    """Trains ReLU networks of all widths side by side; returns steps, training and test errors ``(records, widths)``.

    The hidden units of all networks are rows of one matrix, and ``owner`` adds up those of each: the gradients are
    those of separate training. Full batch, Adam with a cosine schedule.
    """
    dim, units = data.x.shape[1], sum(widths)
    sizes = torch.tensor(widths)
    owner = torch.repeat_interleave(torch.eye(len(widths)), sizes, dim=0)  # (units, widths)
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(units, dim, generator=generator) / dim**0.5
    head = scale * torch.randn(units, generator=generator) / torch.repeat_interleave(sizes, sizes).sqrt()
    parameters = [hidden, torch.zeros(units), head, torch.zeros(len(widths))]
    for parameter in parameters:
        parameter.requires_grad_()
    hidden, bias, head, offset = parameters
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def outputs(x: Tensor) -> Tensor:
        return torch.addmm(bias, x, hidden.T).relu() @ (owner * head[:, None]) + offset

    at, train, tested = [], [], []
    for step in range(steps + 1):
        errors = ((outputs(data.x) - data.y[:, None]) ** 2).mean(0)
        if step % every == 0 or step == steps or (step < 4 * every and step % 5 == 0):
            at.append(step)
            train.append(errors.detach())
            with torch.no_grad():
                tested.append(((outputs(test.x) - test.y_clean[:, None]) ** 2).mean(0) + test.noise_var)
        optimizer.zero_grad()
        errors.sum().backward()
        optimizer.step()
        schedule.step()
    return at, torch.stack(train), torch.stack(tested)


class Regression(NamedTuple):
    """Digits regressed on random ReLU features by gradient flow from 0."""

    features: Tensor  # of all digits
    targets: Tensor
    train: Tensor
    test: Tensor

    def errors(self, t: Tensor) -> Tensor:
        """Returns the test error at each time, ``(times,)``."""
        x, y = self.features[self.train], self.targets[self.train]
        left, size, right = torch.linalg.svd(x, full_matrices=False)
        target = (left.T @ y) / size[:, None]
        tested = self.features[self.test] @ right.T
        learned = -torch.expm1(-t[:, None] * size**2 / len(x))
        return torch.stack(
            [(tested @ (d[:, None] * target) - self.targets[self.test]).square().mean() for d in learned]
        )

    def predicted(self, t: Tensor) -> tuple[Tensor, float]:
        """Returns the curve that the spectrum predicts, and its best time."""
        truth = torch.linalg.lstsq(self.features, self.targets).solution
        freedom = (len(self.features) - len(truth)) * self.targets.shape[1]
        noise = float((self.features @ truth - self.targets).square().sum()) / freedom
        tested = self.features[self.test]
        second = tested.T @ tested / len(tested)
        curve = spectral_learning_curve(self.features[self.train], truth, noise, t=t, covariance=second, tol=1e-13)
        return curve.test, curve.t_opt


def digit_features(seed: int, profile: str) -> Iterable[tuple[int, Regression]]:
    images, labels = digits()
    n, widths = DIGITS[profile]
    x = images.flatten(1).double()
    x = x - x.mean(0)
    x /= x.square().mean().sqrt()
    targets = F.one_hot(labels).double() - 0.1
    train, test = stratified_split(labels, (n, len(labels) - n), seed=seed)
    weights = torch.randn(64, widths[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 8
    hidden = (x @ weights).relu()
    for width in widths:
        yield width, Regression(hidden[:, :width] * (2 / width) ** 0.5, targets, train, test)


def digit_regression(seed: int, profile: str) -> dict[str, float]:
    n, widths = DIGITS[profile]
    final, best, smallest, deviations, regrets, frozen = [], [], [], [], [], []
    over_time: Rows = []
    for width, data in digit_features(seed, profile):
        curve = data.errors(DIGIT_TIMES)
        final.append(float(curve[-1]))
        best.append(float(curve.min()))
        seen = data.features[data.train]
        smallest.append(float(torch.linalg.svdvals(seen)[-1].square()) / n)
        log_curve("final error over width", width, final[-1])
        log_curve("best error over width", width, best[-1])
        log_curve("smallest nonzero eigenvalue over width", width, smallest[-1])
        shown = width in (n // 4, n, widths[-1])
        if shown:
            over_time += rows(f"{width} features", "simulation", DIGIT_TIMES[1::2], curve[1::2])
        if width <= 2 * n:
            frozen.append(abs(frozen_subspace(seen, tol=1e-13).dim - max(0, width - n)))
            predicted, t_opt = data.predicted(DIGIT_TIMES)
            deviations.append(float((curve / predicted - 1).abs().max()))
            regrets.append(float(data.errors(torch.tensor([t_opt]))) / best[-1] - 1)
            if shown:
                over_time += rows(f"{width} features", "theory", DIGIT_TIMES[1:], predicted[1:])
    over_width = [row for name, y in (("final", final), ("best time", best)) for row in rows(name, "", widths, y)]
    log_figure("test error over width", figure(over_width, "width"))
    eigenvalues = [
        {"x": w, "y": value, "of": "smallest", "kind": ""} for w, value in zip(widths, smallest, strict=True)
    ]
    log_figure("smallest nonzero eigenvalue", figure(eigenvalues, "width", "eigenvalue"))
    log_figure("test error over time", figure(over_time, "t"))
    at = int(np.argmax(final))
    return {
        "peak_width": float(widths[at]),
        "peak_distance": abs(math.log(widths[at] / n)),
        "peak_ratio": final[at] / final[-1],
        "widest_over_stopped": final[-1] / min(best),
        "deviation": max(deviations),
        "regret": max(regrets),
        "frozen_error": float(max(frozen)),
        "eigenvalue_recovery": math.log10(smallest[-1] / smallest[widths.index(n)]),
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def rows(series: str, kind: str, x: Iterable[float], y: Iterable[float]) -> Rows:
    """Points of a figure; what has vanished is shown as a hundred-thousandth."""
    return [{"x": float(a), "y": max(float(b), 1e-5), "of": series, "kind": kind} for a, b in zip(x, y, strict=True)]


def figure(values: Rows, x: str, y: str = "error") -> dict[str, Any]:
    """Both axes logarithmic: theory as lines, simulation as points, what has no theory as both."""
    log = {"type": "log", "nice": False}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "scale": log, "title": x},
        "y": {"field": "y", "type": "quantitative", "scale": {**log, "zero": False}, "title": y},
        "color": {"field": "of", "type": "nominal", "title": None},
    }
    lines = {"transform": [{"filter": "datum.kind != 'simulation'"}], "mark": {"type": "line", "clip": True}}
    points = {"transform": [{"filter": "datum.kind != 'theory'"}], "mark": {"type": "point", "filled": True}}
    return {"data": {"values": values}, "encoding": encoding, "layer": [lines, points]}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["part"] == "linear":
        return linear(arm["snr"], arm["inr"], seed, profile)
    if arm["part"] == "relu":
        return relu(arm["scale"], seed, profile)
    parts = {"start": initial_variance, "steps": gradient_descent, "digits": digit_regression}
    return parts[arm["part"]](seed, profile)


def _linear(snr: float | None, inr: float = 0.0) -> dict[str, Any]:
    return {"part": "linear", "snr": snr, "inr": inr}


METRICS = {
    **dict.fromkeys(("deviation", "deviation_near_one", "gap_to_theory", "train_deviation"), lower_is_better),
    **dict.fromkeys(("step_difference", "slope_error", "stopped_rise", "stopped_over_ridge"), lower_is_better),
    **dict.fromkeys(("peak_distance", "widest_error", "best_stopped"), lower_is_better),
    **dict.fromkeys(("widest_over_stopped", "widest_over_own", "largest_train_error"), lower_is_better),
    **dict.fromkeys(("regret", "frozen_error"), lower_is_better),
    **dict.fromkeys(("peak_ratio", "peak_width", "bound_rank", "norm_rank"), higher_is_better),
    "eigenvalue_recovery": higher_is_better,
}

study = Study(
    slug="high-dim-dynamics",
    title="High-dimensional dynamics of generalization error in neural networks",
    arms={
        "linear, snr 5": _linear(5.0),
        "linear, snr 1": _linear(1.0),
        "linear, no noise": _linear(None),
        "linear, snr 5, large start": _linear(5.0, 1.0),
        "linear, snr 1, large start": _linear(1.0, 1.0),
        "linear, no noise, large start": _linear(None, 1.0),
        "initial variance": {"part": "start"},
        "gradient descent": {"part": "steps"},
        "relu, small start": {"part": "relu", "scale": 0.1},
        "relu, large start": {"part": "relu", "scale": 1.0},
        "digits": {"part": "digits"},
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_most("linear, snr 5", on="deviation", value=0.05),
        at_most("linear, snr 5", on="deviation_near_one", value=0.05),
        at_most("linear, snr 5, large start", on="deviation", value=0.05),
        at_least("linear, snr 5", on="peak_ratio", value=5.0),
        at_most("linear, snr 5", on="stopped_rise", value=0.0),
        at_most("linear, snr 1", on="stopped_rise", value=0.0),
        at_most("linear, snr 5", on="stopped_over_ridge", value=1.05),
        at_most("initial variance", on="slope_error", value=0.05),
        at_most("relu, small start", on="peak_distance", value=0.7),
        at_least("relu, small start", on="peak_ratio", value=1.5),
        at_least("relu, large start", on="peak_ratio", value=1.5),
        at_most("relu, small start", on="widest_over_stopped", value=1.2),
        at_most("relu, large start", on="widest_over_stopped", value=1.2),
        at_most("relu, small start", on="widest_over_own", value=1.2),
        at_most("relu, large start", on="widest_over_own", value=1.2),
        at_most("relu, small start", on="largest_train_error", value=0.01),
        better("relu, small start", than="relu, large start", on="widest_error"),
        at_least("digits", on="peak_ratio", value=5.0),
        at_most("digits", on="widest_over_stopped", value=1.2),
        at_most("digits", on="deviation", value=0.25),
        at_most("digits", on="regret", value=0.05),
        at_least("digits", on="eigenvalue_recovery", value=2.0),
    ],
    checks=[
        at_most("gradient descent", on="step_difference", value=0.01),
        at_most("linear, snr 5", on="peak_distance", value=0.1),
        at_most("relu, large start", on="peak_distance", value=0.7),
        at_most("digits", on="peak_distance", value=0.15),
        at_most("digits", on="frozen_error", value=0.0),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
)
