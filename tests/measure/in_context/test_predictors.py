import math

import numpy as np
import pytest
import torch

from heldout.measure import (
    BayesPredictor,
    ContextCopyPredictor,
    DirichletPredictor,
    DiscreteMMSE,
    RidgePredictor,
    StoredItemsPredictor,
    TaskMixturePredictor,
    description_bits,
)
from heldout.tasks import linear_regression, noisy_classification, urns


def naive_mixture(tasks, tokens):
    """One position and one task after the other."""
    tasks, found = tasks.double().tolist(), []
    for row in tokens.tolist():
        logs, outputs = [0.0] * len(tasks), []
        for token in row:
            top = max(logs)
            weights = [math.exp(each - top) for each in logs]
            outputs.append([sum(w * t[k] for w, t in zip(weights, tasks)) / sum(weights) for k in range(len(tasks[0]))])
            logs = [log + math.log(task[token]) for log, task in zip(logs, tasks)]
        found.append(outputs)
    return torch.tensor(found, dtype=torch.float64)


def test_dirichlet_is_the_integral_over_the_simplex():
    tokens = torch.tensor([[0, 2, 2, 1, 2]])
    grid = (np.arange(400) + 0.5) / 400
    a, b = np.meshgrid(grid, grid, indexing="ij")
    theta = np.stack([a, b, 1 - a - b], -1)[a + b < 1]
    for concentration in (1.0, 2.0):
        found = DirichletPredictor(3, concentration).predict(tokens)[0]
        for t in range(5):
            counts = np.bincount(tokens[0, :t], minlength=3)
            weight = (theta ** (counts + concentration - 1)).prod(1)
            expected = (weight[:, None] * theta).sum(0) / weight.sum()
            np.testing.assert_allclose(found[t], expected, atol=2e-3)


def test_the_mixture_is_bayes_rule_step_by_step():
    world = urns(4, tasks=7, context=9, seed=1)
    tokens = world.sample(5, "ood", seed=2)
    torch.testing.assert_close(TaskMixturePredictor(world.tasks).predict(tokens), naive_mixture(world.tasks, tokens))


def test_a_known_single_task_is_returned_exactly():
    tasks = urns(6, tasks=1, seed=3).tasks
    found = TaskMixturePredictor(tasks).predict(torch.randint(0, 6, (3, 8)))
    assert bool((found == tasks[0]).all())


def test_first_positions_are_the_mean_task_and_uniform():
    world = urns(4, tasks=5)
    tokens = world.sample(2)
    torch.testing.assert_close(TaskMixturePredictor(world.tasks).predict(tokens)[0, 0], world.tasks.mean(0))
    assert DirichletPredictor(4).predict(tokens)[:, 0].unique().tolist() == [0.25]


def test_many_tasks_make_the_mixture_generalise():
    world = urns(8, tasks=20_000, context=17, seed=4)
    tokens = world.sample(40, "ood", seed=5)
    known = TaskMixturePredictor(world.tasks).predict(tokens)
    variation = (known - DirichletPredictor(8).predict(tokens)).abs().sum(2) / 2
    assert float(variation.max()) < 0.05


def test_long_contexts_keep_their_posterior():
    """Log-likelihoods near -1e6, of which float32 loses the digits that decide."""
    tasks = torch.tensor([[0.500, 0.500], [0.502, 0.498]])
    tokens = torch.tensor([[0, 1]]).repeat(1, 200_000)
    found = TaskMixturePredictor(tasks).predict(tokens)[0, -2]
    gap = 199_999 * (math.log(0.502) + math.log(0.498) - 2 * math.log(0.5))
    weight = 1 / (1 + math.exp(gap))
    assert found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(0.5 * weight + 0.502 * (1 - weight), abs=1e-6)


def test_an_answer_does_not_depend_on_how_rows_are_chunked_nor_on_later_draws(monkeypatch):
    from heldout.measure.in_context import predictors

    world = urns(4, tasks=7, context=9)
    tokens = world.sample(5)
    pairs = linear_regression(3, tasks=4, context=6).sample(5)
    calls = [
        (TaskMixturePredictor(world.tasks), tokens),
        (RidgePredictor(0.1), pairs),
        (DiscreteMMSE(linear_regression(3, tasks=4).tasks, 0.1), pairs),
    ]
    whole = [predictor.predict(batch) for predictor, batch in calls]
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 4
    torch.testing.assert_close(calls[0][0].predict(changed), whole[0])
    later = (pairs[0], pairs[1].clone())
    later[1][:, -1] += 5
    torch.testing.assert_close(calls[1][0].predict(later), whole[1])
    torch.testing.assert_close(calls[2][0].predict(later), whole[2])
    monkeypatch.setattr(predictors, "_AT_ONCE", 1)
    for (predictor, batch), expected in zip(calls, whole, strict=True):
        torch.testing.assert_close(predictor.predict(batch), expected)


def test_ridge_and_discrete_mmse_are_the_equations_one_by_one():
    world = linear_regression(dim=3, tasks=5, context=6, noise_var=0.3, seed=1)
    x, y = (each.double() for each in world.sample(4, seed=2))
    ridge = RidgePredictor(0.3, prior_var=2.0).predict((x, y))
    discrete = DiscreteMMSE(world.tasks, 0.3).predict((x, y))
    for i in range(4):
        for t in range(6):
            inputs, targets = x[i, :t], y[i, :t]
            weight = torch.linalg.inv(inputs.T @ inputs + 0.15 * torch.eye(3, dtype=torch.float64)) @ inputs.T @ targets
            assert float(ridge[i, t]) == pytest.approx(float(weight @ x[i, t]), abs=1e-9)
            chances = torch.stack([(-(targets - inputs @ task).square().sum() / 0.6).exp() for task in world.tasks])
            weight = (chances / chances.sum()) @ world.tasks
            assert float(discrete[i, t]) == pytest.approx(float(weight @ x[i, t]), abs=1e-9)


def test_many_known_regressions_are_ridge():
    world = linear_regression(dim=2, tasks=50_000, context=5, noise_var=0.5)
    pairs = world.sample(6, "ood", seed=1)
    torch.testing.assert_close(
        DiscreteMMSE(world.tasks, 0.5).predict(pairs), RidgePredictor(0.5).predict(pairs), atol=0.05, rtol=0
    )


def test_a_single_known_regression_is_returned_exactly():
    world = linear_regression(dim=3, tasks=1)
    x, y = world.sample(4)
    torch.testing.assert_close(DiscreteMMSE(world.tasks, 0.1).predict((x, y)), x @ world.tasks[0].float())


def test_copying_and_knowing_items_are_bayes_rule():
    """Against densities of normal distributions, item by item."""
    dim, noise = 4, 0.5
    world = noisy_classification(dim, tasks=5, context=4, noise_var=noise, seed=1)
    x, y = (each.double() for each in world.sample(6, seed=2))
    batch = (x, y.long())
    rho = 1 / (1 + noise)
    copied, known = (
        ContextCopyPredictor(noise).predict(batch),
        StoredItemsPredictor(world.tasks, noise).predict(batch),
    )

    def chance(value, mean, variance):
        return math.exp(-float((value - mean).square().sum()) / (2 * variance))

    for i in range(6):
        weights = [chance(x[i, -1], rho * x[i, j], (1 - rho**2) / dim) for j in range(3)]
        expected = sum(w for w, label in zip(weights, y[i].tolist()) if label == 1) / sum(weights)
        assert float(copied[i, 1]) == pytest.approx(expected)
        scale = math.sqrt(1 + noise)
        weights = [chance(x[i, -1], task[:-1] / scale, noise / (1 + noise) / dim) for task in world.tasks]
        expected = sum(w for w, task in zip(weights, world.tasks.tolist()) if task[-1] == 1) / sum(weights)
        assert float(known[i, 1]) == pytest.approx(expected)
    torch.testing.assert_close(copied.sum(1), torch.ones(6, dtype=torch.float64))


def test_each_predicts_its_own_split_better_than_the_other():
    world = noisy_classification(dim=16, tasks=8, context=12)
    for split, best in (("train", "known"), ("ood", "copied")):
        x, y = world.sample(600, split, seed=1)
        predictors = {"copied": ContextCopyPredictor(), "known": StoredItemsPredictor(world.tasks)}
        right = {
            name: float((each.predict((x, y)).argmax(1) == y[:, -1]).double().mean())
            for name, each in predictors.items()
        }
        assert max(right, key=right.get) == best
        assert right[best] > 0.75


def test_complexity_grows_with_the_tasks_that_are_known_and_not_with_what_is_inferred():
    sizes = [TaskMixturePredictor(urns(8, tasks=count).tasks).complexity_bits() for count in (4, 64, 1024)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] == pytest.approx(64 * 8 * 1024, rel=0.1)
    assert DirichletPredictor(8).complexity_bits() < sizes[0]
    tasks = torch.rand(5, 4, dtype=torch.float64)
    assert DiscreteMMSE(tasks, 0.1).complexity_bits() == description_bits(tasks) + description_bits(
        DiscreteMMSE.program
    )
    every = [
        DirichletPredictor(3),
        RidgePredictor(0.1),
        ContextCopyPredictor(),
        DiscreteMMSE(tasks, 0.1),
        StoredItemsPredictor(torch.tensor([[0.5, 1.0]])),
    ]
    assert all(isinstance(each, BayesPredictor) and each.complexity_bits() > 0 for each in every)


def test_a_floor_is_explicit():
    tasks = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="tasks must not hold probabilities of 0: give a floor"):
        TaskMixturePredictor(tasks)
    found = TaskMixturePredictor(tasks, floor=1e-3)
    torch.testing.assert_close(found.tasks[0], torch.tensor([1.0, 1e-3]) / 1.001)
    assert bool(found.predict(torch.tensor([[1, 1, 1]])).isfinite().all())


PAIRS = (torch.ones(2, 3, 4), torch.zeros(2, 3))
TWO = torch.tensor([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: DirichletPredictor(1), "categories must be at least 2"),
        (lambda: DirichletPredictor(2, 0.0), "concentration must be positive"),
        (lambda: DirichletPredictor(2).predict(torch.tensor([[2]])), "batch must be integers from 0 to 1"),
        (lambda: DirichletPredictor(2).predict(torch.tensor([0])), "batch must have 2 dimensions"),
        (lambda: DirichletPredictor(2).predict(torch.tensor([[0.5]])), "batch must be integers"),
        (lambda: TaskMixturePredictor(torch.tensor([[0.5, 0.6]])), "tasks must be non-negative and sum to 1"),
        (lambda: TaskMixturePredictor(torch.tensor([[0.5, math.nan]])), "tasks must be finite"),
        (lambda: TaskMixturePredictor(TWO).predict(torch.tensor([[2]])), "batch must be integers"),
        (lambda: RidgePredictor(0.0), "noise_var must be positive"),
        (lambda: RidgePredictor(0.1).predict((PAIRS[0], PAIRS[1][:1])), "batch must be"),
        (lambda: RidgePredictor(0.1).predict((PAIRS[0] * math.nan, PAIRS[1])), "batch must be finite"),
        (lambda: DiscreteMMSE(TWO, -1.0), "noise_var must be positive"),
        (lambda: DiscreteMMSE(TWO, 1.0).predict(PAIRS), "batch must have x of the tasks' 2 entries"),
        (lambda: ContextCopyPredictor().predict((PAIRS[0][:, :1], PAIRS[1][:, :1].long())), "at least one labelled"),
        (lambda: ContextCopyPredictor().predict((PAIRS[0], PAIRS[1].long() + 2)), "batch must be integers"),
        (lambda: StoredItemsPredictor(TWO), "tasks must be items with a whole number"),
        (lambda: StoredItemsPredictor(torch.ones(2, 3)).predict(PAIRS), "batch must have x of the items' 2"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()


def test_a_posterior_of_twenty_thousand_draws_is_exact_to_one_draw():
    tasks = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64)
    draws = (torch.arange(20_001) % 2)[None]
    found = TaskMixturePredictor(tasks).predict(draws)[0].double()
    assert torch.allclose(found[20_000], tasks.mean(0), atol=1e-6)  # as many of either
    assert torch.allclose(found[19_999], (2 * tasks[0] + tasks[1]) / 3, atol=1e-6)  # one more of the first
