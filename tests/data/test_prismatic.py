import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import PrismaticSynthesizer, sparse_select, spherical_kmeans
from heldout.data.prismatic import sparse_clusters

WORDS = ("red", "green", "blue", "black")


def features(examples):
    """A direction for each colour, with a little of its own for each example."""
    rows = torch.tensor([[float(word in problem) for word in WORDS] for problem, _ in examples])
    return rows + 0.01 * torch.tensor([[len(problem) % 5.0] for problem, _ in examples])


def pool(**counts):
    return [(f"{word} car number {i}", "yes") for word, n in counts.items() for i in range(n)]


def writer(*words):
    """A generator that goes on through the colours, with a new number each time."""
    numbers, colours = itertools.count(1000), itertools.cycle(words)
    return lambda shots: [f"a {next(colours)} boat {next(numbers)} {next(numbers)}" for _ in range(2)]


def always(problem, n):
    return ["yes"] * n


def colours(examples):
    return [next(word for word in WORDS if word in problem) for problem, _ in examples]


def test_spherical_kmeans_finds_directions_whatever_the_length():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 3
    rows = F.one_hot(truth, 3) + 0.05 * torch.randn(60, 3, generator=generator)
    found = spherical_kmeans(rows * torch.rand(60, 1, generator=generator).add(0.1), 3)
    assert sorted(found.sizes.tolist()) == [20, 20, 20]
    assert all(len(found.labels[truth == group].unique()) == 1 for group in range(3))
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_there_are_no_more_clusters_than_different_rows():
    assert spherical_kmeans(torch.eye(2).repeat(5, 1), 7).sizes.tolist() == [5, 5]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100))
def test_a_selection_has_n_different_examples_and_follows_the_seed(n, seed):
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
    chosen = sparse_select(rows, n, 5, seed=seed)
    assert len(chosen.unique()) == n
    assert torch.equal(chosen, sparse_select(rows, n, 5, seed=seed))


def test_a_selection_takes_small_clusters_whole_and_cuts_large_ones_to_one_size():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    chosen = labels[sparse_select(F.one_hot(labels, 3).float(), 23, 3)]
    assert torch.bincount(chosen).tolist() == [10, 10, 3]


def test_the_smaller_half_of_the_clusters_is_sparse():
    assert sparse_clusters(torch.tensor([9, 1, 4, 7])).tolist() == [False, True, True, False]
    assert sparse_clusters(torch.tensor([9, 1, 4, 7]), 1.0).all()
    assert sparse_clusters(torch.tensor([3]), 0.1).tolist() == [True]


def test_only_examples_in_sparse_clusters_are_kept():
    seeds = pool(red=8, green=8, blue=2, black=1)
    grow = PrismaticSynthesizer(features, writer(*WORDS), always, k=4)
    grown = grow.run(seeds, 1, 6)
    assert grown[: len(seeds)] == seeds
    assert set(colours(grown[len(seeds) :])) == {"blue", "black"}
    (found,) = grow.history
    assert found.kept == 6
    assert found.dense >= 4


def test_prompts_are_made_of_examples_from_sparse_clusters():
    prompts = []

    def generate(shots):
        prompts.extend(colours(shots))
        return writer("blue")(shots)

    PrismaticSynthesizer(features, generate, always, k=4).run(pool(red=8, green=8, blue=2, black=1), 1, 1)
    assert set(prompts) <= {"blue", "black"}


def test_clusters_are_found_anew_in_each_round():
    grow = PrismaticSynthesizer(features, writer("blue", "red"), always, k=2, patience=10)
    grown = grow.run(pool(red=6, blue=2), 2, 10)
    assert colours(grown[8:18]) == ["blue"] * 10
    assert colours(grown[18:]) == ["red"] * 10


def test_with_one_cluster_or_all_of_them_marked_everything_is_kept():
    for options in ({"k": 1}, {"k": 4, "sparse_fraction": 1.0}):
        grow = PrismaticSynthesizer(features, writer(*WORDS), always, **options)
        grow.run(pool(red=8, blue=2), 1, 20)
        assert grow.history[0] == (20, 0, 0, 0, 20)


def test_a_generator_that_lands_only_in_the_densest_cluster_ends_the_run_with_a_message():
    grow = PrismaticSynthesizer(features, writer("red"), always, k=2, patience=7)
    seeds = pool(red=9, blue=2)
    with pytest.warns(UserWarning, match=r"stopped in round 1 of 3 with 0 of 5 .* called 7 times .*nothing was kept"):
        assert grow.run(seeds, 3, 5) == seeds
    assert grow.history == [(14, 0, 0, 14, 0)]


def test_problems_without_a_majority_and_near_duplicates_are_dropped():
    def solve(problem, n):
        return ["yes"] * (n // 2) + ["no"] * (n // 2) + ["perhaps"] * (n % 2)

    seeds = pool(red=3, blue=3)
    split = PrismaticSynthesizer(features, writer("blue"), solve, k=1, patience=3)
    again = PrismaticSynthesizer(features, lambda shots: [seeds[0][0].upper()], always, k=1, patience=3)
    for grow, expected in ((split, (6, 0, 6, 0, 0)), (again, (3, 3, 0, 0, 0))):
        with pytest.warns(UserWarning, match="nothing was kept"):
            assert grow.run(seeds, 1, 2) == seeds
        assert grow.history == [expected]


@pytest.mark.parametrize(("votes", "agreeing", "kept"), [(2, 1, 0), (4, 2, 0), (4, 3, 2), (5, 3, 2), (5, 2, 0)])
def test_more_than_half_of_an_even_or_odd_number_of_votes_must_agree(votes, agreeing, kept):
    def solve(problem, n):
        return ["yes"] * agreeing + [f"other {number}" for number in range(n - agreeing)]

    grow = PrismaticSynthesizer(features, writer("blue"), solve, k=1, votes=votes, patience=2)
    seeds = pool(red=3, blue=3)
    with contextlib.nullcontext() if kept else pytest.warns(UserWarning, match="nothing was kept"):
        assert len(grow.run(seeds, 1, 2)) == len(seeds) + kept


def test_the_vote_is_on_the_answer_and_keeps_a_response_that_gives_it():
    def solve(problem, n):
        return ["so 3", "hence 4", "thus 4", "that is 4", "maybe 5"]

    grow = PrismaticSynthesizer(features, writer("blue"), solve, k=1, answer=lambda response: response.split()[-1])
    assert grow.run(pool(red=2), 1, 1)[-1][1] == "hence 4"


def test_the_judge_has_the_last_word():
    grow = PrismaticSynthesizer(features, writer("blue", "red"), always, lambda problem, _: "red" in problem, k=1)
    assert colours(grow.run(pool(red=2), 1, 5)[2:]) == ["red"] * 5


def test_a_run_follows_its_seed():
    def edited(shots):
        return [f"{shots[0][0]} {shots[-1][0]} again"]

    runs = [
        PrismaticSynthesizer(features, edited, always, k=2, seed=seed, patience=5).run(pool(red=9, blue=8), 1, 4)
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_bad_input_is_told():
    def make(**options):
        return PrismaticSynthesizer(options.pop("features", features), writer("red"), always, **options)

    zero = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    cases = [
        (lambda: make(sparse_fraction=0.0), r"sparse_fraction must lie in \(0, 1\], got 0.0"),
        (lambda: make(overlap=1.5), "overlap must lie"),
        (lambda: make(votes=0), "votes must be at least 1, got 0"),
        (lambda: make(k=0), "k must be at least 1, got 0"),
        (lambda: make().run([], 1, 1), "at least one example"),
        (lambda: make().run(pool(red=2), 0, 1), "rounds and per_round must be at least 1, got 0 and 1"),
        (lambda: make(features=lambda e: torch.ones(1, 3)).run(pool(red=2), 1, 1), r"for 2 examples, got \(1, 3\)"),
        (lambda: spherical_kmeans(zero, 2), "example 1 are all zero"),
        (lambda: spherical_kmeans(zero * float("nan"), 2), "example 0 are not finite"),
        (lambda: spherical_kmeans(torch.ones(3), 2), r"\(n, d\)"),
        (lambda: spherical_kmeans(zero[:1], 0), "k must be at least 1"),
        (lambda: sparse_select(zero, 3), r"n must lie in 1..2, .* got 3"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
