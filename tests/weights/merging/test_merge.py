import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.weights import TaskVector, average, consensus, search_scale, task_arithmetic, ties
from tests.weights.networks import ResNet, finetuned, stack
from tests.weights.test_task_vector import assert_states_equal

PRE = stack(seed=0)


def vectors(count: int, seed: int = 1) -> list[TaskVector]:
    return [TaskVector(PRE, stack(seed=seed + n)) for n in range(count)]


def flat(vector: TaskVector) -> torch.Tensor:
    return torch.cat([part.flatten() for part in vector.delta.values()])


def ties_by_hand(tasks: list[torch.Tensor], density: float) -> torch.Tensor:
    trimmed = []
    for task in tasks:
        kept = task.abs().argsort(descending=True)[: -int(-density * len(task) // 1)]
        mask = torch.zeros(len(task), dtype=torch.bool).index_fill(0, kept, True)
        trimmed.append(torch.where(mask, task, 0))
    merged = torch.zeros_like(tasks[0])
    for i in range(len(merged)):
        values = [float(task[i]) for task in trimmed]
        sign = (sum(values) > 0) - (sum(values) < 0)
        agreeing = [value for value in values if value * sign > 0]
        merged[i] = sum(agreeing) / len(agreeing) if agreeing else 0
    return merged


@settings(max_examples=15)
@given(st.integers(1, 4), st.sampled_from([0.05, 0.2, 0.5, 1.0]), st.integers(0, 50))
def test_ties_equals_its_definition_entry_by_entry(count, density, seed):
    tasks = vectors(count, seed + 1)
    expected = ties_by_hand([flat(task) for task in tasks], density)
    torch.testing.assert_close(flat(ties(tasks, density)), expected, rtol=1e-5, atol=1e-6)


def test_ties_without_trimming_is_the_sum_of_disjoint_vectors():
    numbers = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    tasks = [
        TaskVector({"w": torch.zeros(12)}, {"w": row * (torch.arange(12) % 3 == n)}) for n, row in enumerate(numbers)
    ]
    assert_states_equal(ties(tasks, density=1.0).delta, task_arithmetic(tasks).delta)


def test_merges_do_not_change_their_input():
    tasks = vectors(3)
    before = [flat(task) for task in tasks]
    for merge in (ties, consensus, task_arithmetic):
        merge(tasks)
    for task, copy in zip(tasks, before, strict=True):
        assert torch.equal(flat(task), copy)


def test_consensus_keeps_what_two_tasks_use():
    one, two, three = (torch.tensor(row) for row in ([1.0, 1.0, 0.1], [1.0, 0.0, 0.1], [0.0, 0.0, 5.0]))
    tasks = [TaskVector({"w": torch.zeros(3)}, {"w": row}) for row in (one, two, three)]
    # by hand, threshold 0.4: weight 1 is used by tasks 1 and 2, weight 2 by task 1, weight 3 by task 3
    assert consensus(tasks).delta["w"].tolist() == [2.0, 0.0, 0.0]
    assert consensus(tasks, min_tasks=1).delta["w"].tolist() == pytest.approx([2.0, 1.0, 5.2])


def test_task_arithmetic_is_the_sum():
    tasks = vectors(4)
    torch.testing.assert_close(flat(task_arithmetic(tasks)), sum(flat(task) for task in tasks))


def test_average_weighs_models_and_copies_counters():
    networks = [finetuned(ResNet(), seed) for seed in range(3)]
    networks[0].bn1.num_batches_tracked.fill_(7)
    soup = average(networks, coefficients=[0.5, 0.25, 0.25])
    expected = sum(c * n.fc.weight for c, n in zip((0.5, 0.25, 0.25), networks, strict=True))
    torch.testing.assert_close(soup["fc.weight"], expected.detach())
    assert int(soup["bn1.num_batches_tracked"]) == 7
    assert average([stack(seed=1, dtype=torch.bfloat16)] * 2)["embed.weight"].dtype == torch.bfloat16
    assert_states_equal(average([PRE, PRE, PRE]), PRE)


def test_search_takes_the_first_best_value_and_keeps_the_scores():
    best = search_scale(lambda x: x, [0.0, 0.5, 1.0, 1.5], lambda x: -abs(x - 0.75))
    assert best == (0.5, -0.25, {0.0: -0.75, 0.5: -0.25, 1.0: -0.25, 1.5: -0.75})
    nan = float("nan")
    assert search_scale(lambda x: x, [1, 2], lambda x: nan if x == 1 else 0.0).value == 2
    for grid in ([], [nan]):
        with pytest.raises(ValueError, match=r"at least one value|grid must be finite"):
            search_scale(lambda x: x, grid, lambda x: x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ties([]), "vectors must not be empty"),
        (lambda: ties(vectors(2), density=0), "0 < density <= 1"),
        (lambda: consensus(vectors(1)), "at least 2 models, got 1"),
        (lambda: consensus(vectors(2), mask_threshold=0), "mask_threshold"),
        (lambda: average([]), "models must not be empty"),
        (lambda: average([PRE], [0.5, 0.5]), "one coefficient per model"),
        (lambda: average([PRE, stack(2)]), "only in model 1"),
        (lambda: ties([*vectors(1), TaskVector(stack(2), stack(2))]), "only in task vector 1"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
