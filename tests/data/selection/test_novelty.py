"""The curriculum's pool by its closed form."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import heldout
from heldout.data import NoveltyCurriculum, novelty_curriculum
from heldout.method import Method


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.8), (0.1, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("n", [10, 97])
def test_the_pool_has_the_size_of_the_closed_form_and_never_shrinks(n, start, end):
    total = 1000
    sampler = NoveltyCurriculum(range(n), start, end, total_steps=total, seed=3)
    for step in (0, round(start * end * total), round(end * total), total):
        assert sampler.visible_at(step) == math.ceil(n * max(start, min(1, step / (end * total))) - 1e-9)
    seen = set()
    for step in range(0, total + 1, 20):
        sampler.set_step(step)
        drawn = list(sampler)
        assert len(drawn) == len(set(drawn)) == len(sampler) == sampler.visible_at(step)
        assert seen <= set(drawn)
        seen = set(drawn)
    assert seen == set(range(n))


def test_the_order_of_arrival_is_random_and_the_pool_is_shuffled():
    first = NoveltyCurriculum(range(100), total_steps=10, seed=0)
    second = NoveltyCurriculum(range(100), total_steps=10, seed=1)
    drawn = list(first)
    assert sorted(drawn) != list(range(20))
    assert set(drawn) != set(second)
    assert drawn != list(first)
    assert set(drawn) == set(first)


def test_with_a_key_an_example_is_visible_with_the_first_of_its_primitives():
    words = ["walk", "run", "look", "jump", "fly", "swim", "sit", "sing", "dance", "hop"]
    examples = [(a, b) for a in words for b in words] + [()]
    sampler = NoveltyCurriculum(examples, total_steps=100, key=set)
    previous = set()
    for step, unlocked in ((0, 2), (16, 2), (24, 3), (40, 5), (80, 10)):
        sampler.set_step(step)
        visible = {examples[position] for position in sampler}
        alone = {pair[0] for pair in visible if pair and pair[0] == pair[1]}
        assert len(alone) == unlocked
        assert visible == {pair for pair in examples if not pair or set(pair) & alone}
        assert previous <= visible
        previous = visible


def test_steps_are_counted_by_batches_so_that_the_pool_grows_within_an_epoch():
    sampler = NoveltyCurriculum(range(100), total_steps=50, draws=200, batch_size=10, seed=0)
    drawn = [*sampler, *sampler, *sampler]
    assert len(drawn) == 600
    assert sampler.step == 60
    assert len(set(drawn[:80])) == 20
    for step in range(60):
        assert set(drawn[: (step + 1) * 10]) <= set(range(100))
        assert len(set(drawn[: (step + 1) * 10])) <= sampler.visible_at(step)
    assert set(drawn) == set(range(100))


def test_a_number_of_draws_goes_through_the_pool_again_and_again():
    sampler = NoveltyCurriculum(range(50), total_steps=10, draws=35)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 35
    assert len(set(drawn)) == 10
    assert all(drawn.count(position) in (3, 4) for position in set(drawn))
    assert len(DataLoader(range(50), batch_size=5, sampler=sampler)) == 7


def fitted_with(method, data, **options):
    seen = []

    def loss(run, batch):
        seen.append(batch.index.tolist())
        return run.objective(batch.logits, batch.targets)

    heldout.fit(lambda: nn.Linear(2, 2), data, method + Method("watch", loss=loss), **options)
    return seen


def data(n=200):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def test_the_method_keeps_the_number_of_steps_and_lets_examples_arrive():
    plain = fitted_with(Method("plain"), data(), epochs=5, batch_size=20)
    seen = fitted_with(novelty_curriculum(), data(), epochs=5, batch_size=20)
    assert len(seen) == len(plain) == 50
    assert {len(batch) for batch in seen} == {20}
    assert len({i for batch in seen[:8] for i in batch}) == 40
    for step in range(50):
        visible = math.ceil(200 * max(0.2, min(1, step / 40)))
        assert len({i for batch in seen[: step + 1] for i in batch}) <= visible
    assert {i for batch in seen for i in batch} == set(range(200))


def test_the_order_of_arrival_is_that_of_the_run_s_seed_and_steps_may_be_told():
    first = [
        {
            i
            for batch in fitted_with(novelty_curriculum(), data(), epochs=5, batch_size=20, seed=seed)[:8]
            for i in batch
        }
        for seed in (1, 1, 2)
    ]
    assert first[0] == first[1] != first[2]

    def slow(run, train_set):
        run.state["steps_per_epoch"] = 20  # twice as many as are taken
        return train_set

    seen = fitted_with(Method("slow", data=slow) + novelty_curriculum(), data(), epochs=5, batch_size=20)
    assert 80 < len({i for batch in seen for i in batch}) <= math.ceil(200 * 49 / 80)  # all 200 without it


def test_the_method_stands_after_one_that_leaves_examples_out():
    half = Method("half", data=lambda run, data: Subset(data, range(100, 200)))
    seen = fitted_with(half + novelty_curriculum(), data(), epochs=5, batch_size=20)
    assert {i for batch in seen for i in batch} == set(range(100, 200))


def test_the_method_says_why_it_cannot_act():
    splits = heldout.Splits(train=data(4))
    assert novelty_curriculum(start=0.2).check(nn.Linear(2, 2), splits) is None
    assert "all of 4" in novelty_curriculum(start=0.9).check(nn.Linear(2, 2), splits)
    with pytest.raises(TypeError, match="novelty_curriculum orders a data set"):
        fitted_with(novelty_curriculum() + novelty_curriculum(), data(), epochs=1)


def test_unusable_options_are_refused_by_name():
    with pytest.raises(TypeError, match="total_steps"):
        NoveltyCurriculum(range(10))
    for options, message in (
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 5, "start": 0.0}, "start"),
        ({"total_steps": 5, "end": 1.5}, "end"),
        ({"total_steps": 5, "draws": 0}, "draws"),
    ):
        with pytest.raises(ValueError, match=message):
            NoveltyCurriculum(range(10), **options)
    for key in (lambda example: "jump twice", lambda example: 3):
        with pytest.raises(TypeError, match="key must give the primitives"):
            NoveltyCurriculum(range(10), total_steps=5, key=key)
    with pytest.raises(ValueError, match="dataset"):
        NoveltyCurriculum([], total_steps=5)
    with pytest.raises(ValueError, match="step"):
        NoveltyCurriculum(range(10), total_steps=5).set_step(-1)
