"""A memory of examples: shares, orders, uniformity, restarts."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.train import ExemplarMemory, herding_order


def examples(count, label, start=0):
    return torch.arange(start, start + count).float()[:, None], torch.full((count,), label)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.sampled_from(["task", "class"]))
def test_shares_differ_by_one_at_most_where_there_are_enough(capacity, sizes, policy):
    memory = ExemplarMemory(capacity, policy, seed=1)
    for task, size in enumerate(sizes):
        memory.add(examples(size, task, 100 * task), task)
        seen = sizes[: task + 1]
        kept = torch.bincount(memory.tasks, minlength=task + 1).tolist()
        assert sum(kept) == len(memory) <= capacity
        assert all(k <= s for k, s in zip(kept, seen, strict=True))
        limited = [k for k, s in zip(kept, seen, strict=True) if k < s]
        assert not limited or max(kept) - min(limited) <= 1
        assert len(memory) == min(capacity, sum(seen)) or len(memory) == capacity
        assert (memory.inputs[:, 0] // 100).long().equal(memory.targets)  # inputs, targets and tasks stay together
        assert memory.targets.equal(memory.tasks)
        assert len(memory.inputs.unique()) == len(memory)


def test_what_stays_of_a_task_is_what_came_first_in_its_order():
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    order = herding_order(features)
    memory = ExemplarMemory(12)
    memory.add(examples(20, 0), 0, features=features)
    assert memory.inputs[:, 0].long().equal(order[:12])
    memory.add(examples(20, 1, 100), 1)
    assert memory.inputs[memory.tasks == 0, 0].long().equal(order[:6])


def test_herding_chooses_what_a_search_over_all_rows_chooses():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = features / features.norm(dim=1, keepdim=True)
    mean, chosen = rows.mean(0), []
    for k in range(1, 6):
        left = [i for i in range(9) if i not in chosen]
        away = [(mean - (rows[chosen].sum(0) + rows[i]) / k).norm().item() for i in left]
        chosen.append(left[away.index(min(away))])
    assert herding_order(features, 5).tolist() == chosen
    assert sorted(herding_order(features).tolist()) == list(range(9))


def test_a_reservoir_is_a_uniform_sample_whatever_the_order():
    counts = dict.fromkeys(combinations(range(5), 2), 0)
    for seed in range(2000):
        memory = ExemplarMemory(2, "reservoir", seed=seed)
        memory.add(examples(3, 0), 0)
        memory.add(examples(2, 1, 3), 1)
        counts[tuple(sorted(memory.inputs[:, 0].long().tolist()))] += 1
    assert all(140 <= count <= 260 for count in counts.values())  # 200 each, standard deviation 13


def test_classes_share_the_memory_wherever_they_come_from():
    memory = ExemplarMemory(6, "class")
    memory.add((torch.zeros(40, 1), torch.tensor([0] * 38 + [1] * 2)), 0)
    memory.add((torch.zeros(10, 1), torch.full((10,), 2)), 1)
    assert torch.bincount(memory.targets).tolist() == [2, 2, 2]


def test_a_class_that_comes_in_every_task_is_kept_from_all_of_them():
    counts = torch.zeros(4)
    for seed in range(60):
        memory = ExemplarMemory(20, "class", seed=seed)
        for task in range(4):
            memory.add((torch.zeros(50, 1), torch.arange(50) % 2), task)
            assert torch.bincount(memory.targets).tolist() == [10, 10]
        counts += torch.bincount(memory.tasks, minlength=4)
    assert (counts / counts.sum() - 0.25).abs().max() < 0.05


def test_herding_orders_of_several_tasks_stand_side_by_side():
    generator = torch.Generator().manual_seed(0)
    memory = ExemplarMemory(8, "class")
    orders = []
    for task in range(2):
        features = torch.randn(30, 4, generator=generator)
        orders.append((100 * task + herding_order(features)[:4]).tolist())
        memory.add((torch.arange(30.0)[:, None] + 100 * task, torch.zeros(30).long()), task, features=features)
    assert sorted(memory.inputs[:, 0].long().tolist()) == sorted(orders[0] + orders[1])


def test_examples_may_be_dicts_and_tuples():
    rows = [{"input_ids": torch.full((3,), i), "labels": torch.tensor([i, i, -100])} for i in range(5)]
    memory = ExemplarMemory(3)
    memory.add(rows, 0)
    memory.add(rows, 1)
    inputs, targets = memory.sample(8)
    assert inputs["input_ids"].shape == (8, 3)
    assert targets[:, 0].equal(inputs["input_ids"][:, 0])
    pairs = ExemplarMemory(3)
    pairs.add([(torch.tensor(1.0), torch.tensor([2.0, 3.0]), 0)] * 4, 0)
    assert [part.shape for part in pairs.sample(2)[0]] == [(2,), (2, 2)]


def test_no_example_is_drawn_twice_while_others_are_left():
    memory = ExemplarMemory(10)
    memory.add(examples(10, 0), 0)
    assert len(memory.sample(10)[0].unique()) == 10
    assert set(torch.bincount(memory.sample(25)[0][:, 0].long()).tolist()) == {2, 3}


def test_a_memory_that_was_saved_goes_on_as_one_that_was_not(tmp_path):
    first, second = (ExemplarMemory(7, "reservoir", seed=5) for _ in range(2))
    first.add(examples(20, 0), 0)
    torch.save(first.state_dict(), tmp_path / "memory.pt")
    second.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    for memory in (first, second):
        memory.add(examples(9, 1, 50), 1)
    assert first.inputs.equal(second.inputs)
    assert first.sample(4)[0].equal(second.sample(4)[0])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: ExemplarMemory(0), "capacity"),
        (lambda: ExemplarMemory(3, "fifo"), "policy"),
        (lambda: ExemplarMemory(3).sample(1), "empty"),
        (lambda: ExemplarMemory(3).add((torch.zeros(0, 1), torch.zeros(0).long())), "data"),
        (lambda: ExemplarMemory(3, "class").add((torch.zeros(2, 1), torch.zeros(2))), "class label"),
        (lambda: ExemplarMemory(3).add(examples(3, 0), features=torch.zeros(2, 4)), "features"),
        (lambda: ExemplarMemory(3, "reservoir").add(examples(3, 0), features=torch.ones(3, 4)), "reservoir"),
        (lambda: herding_order(torch.full((3, 2), torch.nan)), "features"),
        (lambda: herding_order(torch.ones(3, 2), 4), "count"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_examples_of_another_form_are_refused():
    memory = ExemplarMemory(5)
    memory.add(examples(3, 0), 0)
    with pytest.raises(ValueError, match="one shape and type"):
        memory.add((torch.zeros(3, 2), torch.zeros(3).long()), 1)
    small = ExemplarMemory(2)
    with pytest.raises(ValueError, match="capacity"):
        small.load_state_dict(memory.state_dict())
