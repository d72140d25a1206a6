"""Mixtures of data sets: the shares, what is drawn, and the Method."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heldout import Splits, fit
from heldout.data import Mixture, MixtureSampler, domain_mixing, mixture_weights, useful
from heldout.train import TaskStream

SIZES = {"a": 10, "b": 100, "c": 1000}


def test_capped_shares_are_those_of_the_specification():
    assert [*mixture_weights(SIZES, cap=100).values()] == pytest.approx([10 / 210, 100 / 210, 100 / 210])


def test_without_options_shares_are_proportional():
    assert [*mixture_weights(SIZES).values()] == pytest.approx([10 / 1110, 100 / 1110, 1000 / 1110])


@pytest.mark.parametrize("temperature", [0.5, 2.0, 5.0, math.inf])
def test_a_temperature_takes_the_root_of_the_capped_size(temperature):
    by_hand = np.array([min(size, 500) ** (1 / temperature) for size in SIZES.values()])
    assert [*mixture_weights(SIZES, cap=500, temperature=temperature).values()] == pytest.approx(
        by_hand / by_hand.sum()
    )


def test_shares_of_two_levels_are_products_and_a_group_without_sets_takes_nothing():
    shares = mixture_weights(
        SIZES, group={"a": "x", "b": "x", "c": "y"}, group_weights={"x": 3, "y": 1, "absent": 6}, cap=100
    )
    assert [*shares.values()] == pytest.approx([0.75 * 10 / 110, 0.75 * 100 / 110, 0.25])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cap": 0}, "cap"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"group": {"a": "x", "b": "x", "c": "x"}}, "group_weights"),
        ({"group": {"a": "x"}, "group_weights": {"x": 1}}, "'b'"),
        ({"group": dict.fromkeys("abc", "x"), "group_weights": {"y": 1}}, r"group\['a'\]"),
        ({"group": dict.fromkeys("abc", "x"), "group_weights": {"x": 0, "y": 1}}, "group_weights"),
        ({"group": dict.fromkeys("abc", "x"), "group_weights": {"x": -1}}, r"group_weights\['x'\]"),
    ],
)
def test_options_that_make_no_mixture_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        mixture_weights(SIZES, **options)


def test_an_empty_set_is_refused_by_name():
    with pytest.raises(ValueError, match=r"sizes\['b'\]"):
        mixture_weights({"a": 1, "b": 0})
    with pytest.raises(ValueError, match="'b'"):
        Mixture({"a": [1], "b": []})


def test_sets_are_drawn_at_their_shares_and_none_repeats_within_a_pass():
    member = torch.tensor([0] * 5 + [1] * 50 + [2] * 500)
    sampler = MixtureSampler(member, torch.tensor([1.0, 1.0, 2.0]), draws=8000, seed=3)
    drawn = torch.tensor(list(sampler))
    shares = member[drawn].bincount().double() / 8000
    expected = torch.tensor([0.25, 0.25, 0.5]).double()
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 8000).sqrt()).all()
    of_first = drawn[drawn < 5]
    passes = of_first[: len(of_first) // 5 * 5].view(-1, 5)
    assert (passes.sort(1).values == torch.arange(5)).all()
    assert len(passes.unique(dim=0)) > 50  # each pass in an order of its own


def test_passes_go_on_from_one_epoch_to_the_next():
    sampler = MixtureSampler(torch.zeros(6, dtype=torch.long), torch.ones(1), draws=3)
    assert sorted([*sampler, *sampler]) == [0, 1, 2, 3, 4, 5]


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    make = lambda seed: list(Mixture({"a": [1] * 50, "b": [2] * 5}).sampler(40, seed=seed))  # noqa: E731
    assert make(1) == make(1) != make(2)


@pytest.mark.parametrize(
    ("member", "weights", "named"),
    [
        ([0, 1, 2], [1.0, 1.0], "member"),
        ([0, 0], [1.0, 1.0], "weights"),
        ([0, 1], [0.0, 0.0], "weights"),
        ([0, 1], [-1.0, 2.0], "weights"),
        ([], [1.0], "member"),
    ],
)
def test_samplers_refuse_what_does_not_fit(member, weights, named):
    with pytest.raises(ValueError, match=named):
        MixtureSampler(torch.tensor(member, dtype=torch.long), torch.tensor(weights))


def test_a_mixture_is_a_data_set_whose_members_are_known():
    sets = {"x": TensorDataset(torch.zeros(3, 2)), "y": TensorDataset(torch.ones(2, 2))}
    mixture = Mixture(sets, temperature=math.inf)
    assert [mixture[i][0].mean().item() for i in range(5)] == mixture.member.tolist() == [0, 0, 0, 1, 1]
    assert mixture.weights() == {"x": 0.5, "y": 0.5}
    loader = DataLoader(mixture, batch_size=4, sampler=mixture.sampler(400))
    assert sum(batch.mean().item() for (batch,) in loader) / 100 == pytest.approx(0.5, abs=0.1)
    with pytest.raises(TypeError, match="datasets"):
        Mixture({"x": iter([1])})


def test_sets_of_hugging_face_mix():
    datasets = pytest.importorskip("datasets")
    mixture = Mixture({"a": datasets.Dataset.from_dict({"x": [1, 2]}), "b": datasets.Dataset.from_dict({"x": [3]})})
    assert [mixture[i]["x"] for i in mixture.sampler(3)].count(3) <= 3
    assert mixture[2] == {"x": 3}


def problem(sizes=(90, 10)):
    generator = torch.Generator().manual_seed(0)
    n = sum(sizes)
    domains = torch.tensor([7, 3]).repeat_interleave(torch.tensor(sizes))
    return Splits(train=(torch.randn(n, 4, generator=generator), torch.arange(n) % 3), domains=domains)


def test_the_method_draws_small_domains_more_often():
    run = lambda: None  # noqa: E731
    run.splits, run.generator = problem(), torch.Generator().manual_seed(0)
    sampler = domain_mixing(temperature=2.0).data(run, run.splits.train)
    drawn = run.splits.domains[torch.tensor([position for _ in range(60) for position in sampler])]
    assert len(sampler) == 100
    assert (drawn == 3).double().mean().item() == pytest.approx(0.25, abs=0.03)  # roots: 3 of 9.49 and 3.16


def test_the_method_trains_and_is_alone_in_choosing_examples():
    fitted = fit(lambda: nn.Linear(4, 3), problem(), domain_mixing(), epochs=1)
    assert fitted.predict(torch.randn(2, 4)).shape == (2, 3)
    with pytest.raises(TypeError, match="as given"):
        fit(lambda: nn.Linear(4, 3), problem(), useful(separating_epoch=1) + domain_mixing(), epochs=1)


def test_it_says_where_there_is_nothing_to_mix():
    check, module = domain_mixing().check, nn.Linear(4, 3)
    assert check(module, problem()) is None
    assert "alike" in check(module, problem((50, 50)))
    assert "domains" in check(module, Splits(train=(torch.zeros(4, 2), torch.zeros(4))))
    stream = TaskStream(train=(torch.zeros(4, 2), torch.zeros(4).long()), tasks=torch.tensor([0, 0, 1, 1]))
    assert "task after task" in check(module, stream)
