import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.measure import (
    pathway_consistency,
    pathway_distance,
    pathway_distance_by_layer,
    pathways,
    permute_experts,
)


def routing(samples=5, layers=3, experts=6, seed=0):
    return torch.rand(samples, layers, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def levenshtein(first, second):
    above = list(range(len(second) + 1))
    for i, x in enumerate(first, 1):
        here = [i]
        for j, y in enumerate(second, 1):
            here.append(min(above[j] + 1, here[-1] + 1, above[j - 1] + (x != y)))
        above = here
    return above[-1]


def test_the_fewest_experts_that_carry_the_threshold_are_kept_the_heaviest_first():
    weights = torch.tensor([[[0.4, 0.1, 0.3, 0.2], [0.05, 0.9, 0.05, 0.0]]])
    assert pathways(weights) == [[[0, 2], [1]]]  # 0.4 + 0.3 is the threshold itself
    assert pathways(weights, threshold=0.71) == [[[0, 2, 3], [1]]]
    assert pathways(weights * 7) == pathways(weights)
    assert pathways(torch.tensor([[[0.7, 0.3]]])) == [[[0]]]  # 0.7 in float32 lies below 0.7
    assert pathways(weights, threshold=1.0) == [[[0, 2, 3, 1], [1, 0, 2, 3]]]
    assert pathways(weights, threshold=1e-9) == [[[0], [1]]]
    assert pathways(weights, top_k=3) == [[[0, 2, 3], [1, 0, 2]]]


def test_ties_are_broken_by_id():
    assert pathways(torch.full((1, 1, 40), 0.025), top_k=40) == [[list(range(40))]]
    assert pathways(torch.tensor([[[0.2, 0.4, 0.4]]]), threshold=0.4) == [[[1]]]


def test_equal_pathways_are_at_0_and_those_that_share_nothing_at_1():
    path, other = [[0, 1], [2]], [[2, 3], [1]]
    assert pathway_distance([path, path]) == 0
    assert pathway_distance([path, other]) == 1
    assert pathway_distance([path, other], normalize=False) == 3
    assert pathway_distance([[[1], [2]], [[2], [1]]]) == 1  # an expert of another layer is another expert
    assert pathway_distance([[[0, 1]], [[1, 0]]], normalize=False) == 2  # the order tells
    assert pathway_distance([[[0, 1, 2]], [[0]]]) == pytest.approx(2 / 3)  # the longer pathway is the measure


def test_distance_is_the_mean_over_all_pairs_of_what_the_table_gives():
    paths = pathways(routing(7))
    units = [[(layer, expert) for layer, kept in enumerate(path) for expert in kept] for path in paths]
    texts = [";".join(",".join(map(str, kept)) for kept in path) for path in paths]
    pairs = [(i, j) for i in range(7) for j in range(i)]
    for unit, sequences in (("expert", units), ("char", texts)):
        raw = [levenshtein(sequences[i], sequences[j]) for i, j in pairs]
        longer = [max(len(sequences[i]), len(sequences[j])) for i, j in pairs]
        assert pathway_distance(paths, unit, normalize=False, pairs=None) == pytest.approx(sum(raw) / len(raw))
        share = sum(d / n for d, n in zip(raw, longer, strict=True)) / len(raw)
        assert pathway_distance(paths, unit) == pytest.approx(share)
    by_layer = pathway_distance_by_layer(paths)
    for layer, value in enumerate(by_layer):
        alone = [[path[layer]] for path in paths]
        assert value == pytest.approx(pathway_distance(alone))


def test_characters_take_two_ids_that_share_a_digit_for_alike():
    paths = [[[1]], [[12]]]
    assert pathway_distance(paths, normalize=False) == 1
    assert pathway_distance(paths, "char") == 0.5


@pytest.mark.parametrize(("samples", "pairs"), [(60, 300), (12, 60), (12, 20)])
def test_a_sample_of_pairs_is_near_all_of_them_and_the_same_for_a_seed(samples, pairs):
    paths = pathways(routing(samples))
    every, some = pathway_distance(paths, pairs=None), pathway_distance(paths, pairs=pairs)
    assert some == pytest.approx(every, abs=0.08)
    assert some != every
    assert some == pathway_distance(paths, pairs=pairs)
    assert some != pathway_distance(paths, pairs=pairs, seed=1)
    assert pathway_distance(paths, pairs=samples * samples) == every


@pytest.mark.parametrize("pairs", [300, 800])
def test_no_pair_is_drawn_twice(monkeypatch, pairs):
    seen = []
    monkeypatch.setattr(
        "heldout.measure.routing.pathways.edit_distances_within",
        lambda _, chosen: seen.extend(map(frozenset, chosen.tolist())) or np.zeros(len(chosen), int),
    )
    pathway_distance(pathways(routing(60)), pairs=pairs)
    assert len(set(seen)) == len(seen) == pairs
    assert all(len(pair) == 2 for pair in seen)


def test_renamed_experts_share_only_what_chance_shares():
    paths = [[[0, 1], [3]]] * 200
    null = permute_experts(paths, experts=4, seed=0)
    assert null == permute_experts(paths, experts=4, seed=0) != permute_experts(paths, experts=4, seed=1)
    assert all(len(set(path[0])) == 2 and len(path[1]) == 1 for path in null)
    assert pathway_distance(paths) == 0
    first = torch.tensor([path[1][0] for path in null]).bincount(minlength=4)
    assert first.min() > 30  # of 50 each
    assert pathway_distance_by_layer(null)[1] == pytest.approx(3 / 4, abs=0.05)
    within = sum(path[0] == null[0][0] for path in null)
    assert within < 50  # 12 ordered pairs: 17 of 200
    assert paths[0] == [[0, 1], [3]]


def consistency_by_hand(weights, rows, kept):
    found = []
    for sample, path in zip(weights.double(), kept, strict=True):
        vectors = [
            sum(sample[layer, expert] * rows[layer][expert].double() for expert in experts)
            for layer, experts in enumerate(path)
        ]
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in itertools.pairwise(vectors)]
        found.append(sum(cosines) / len(cosines))
    return found


@pytest.mark.parametrize("cut", [{"threshold": 0.7}, {"threshold": 1.0}, {"top_k": 2}])
def test_consistency_is_the_mean_cosine_of_adjacent_layers(cut):
    weights = routing(4, 3, 6)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(6, 5, generator=generator) for _ in range(3)]
    expected = consistency_by_hand(weights, rows, pathways(weights, **cut))
    assert pathway_consistency(weights, rows, **cut).tolist() == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_consistency_is_1_for_a_constant_layer_and_minus_1_where_the_sign_turns(seed, scale):
    weights = routing(3, 1, 6, seed).expand(3, 4, 6)
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    scaled = [rows, scale * rows, rows / scale, rows]
    assert pathway_consistency(weights, scaled).tolist() == pytest.approx([1] * 3)
    turned = [rows, -scale * rows, rows, -rows]
    assert pathway_consistency(weights, turned).tolist() == pytest.approx([-1] * 3)


def test_consistency_gives_no_gradient_and_takes_half_precision():
    weights, rows = routing(2).half(), [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    assert not pathway_consistency(weights, rows).requires_grad


def test_bad_input_is_refused_by_name():
    for bad in (routing() * -1, routing() * math.nan, routing()[0], torch.zeros(2, 2, 2)):
        with pytest.raises(ValueError, match="weights must"):
            pathways(bad)
    for threshold in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="threshold must"):
            pathways(routing(), threshold=threshold)
    for top_k in (0, 7):
        with pytest.raises(ValueError, match="top_k must"):
            pathways(routing(), top_k=top_k)
    rows = [torch.ones(6, 4)] * 3
    with pytest.raises(ValueError, match="weights must have at least 2 layers"):
        pathway_consistency(routing(layers=1), rows[:1])
    with pytest.raises(ValueError, match="gate_rows must have 3 entries"):
        pathway_consistency(routing(), rows[:2])
    for other in (torch.ones(6, 5), torch.ones(5, 4)):
        with pytest.raises(ValueError, match=r"gate_rows must all be \(6, 4\)"):
            pathway_consistency(routing(), [*rows[:2], other])
    with pytest.raises(ValueError, match="gate_rows must be finite"):
        pathway_consistency(routing(), [*rows[:2], rows[0] * math.nan])
    with pytest.raises(ValueError, match=r"gate_rows .* zero vector"):
        pathway_consistency(routing(), [*rows[:2], rows[0] * 0])
    for bad in ([], [[[0]]], [[[0]], [[0], [1]]], [[[0]], [[]]], [[[0]], [[-1]]], [[], []]):
        for function in (pathway_distance, pathway_distance_by_layer):
            with pytest.raises(ValueError, match="paths"):
                function(bad)
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        pathway_distance([[[0]], [[0]]], pairs=0)
    with pytest.raises(ValueError, match="unit must be"):
        pathway_distance([[[0]], [[0]]], unit="word")
    with pytest.raises(ValueError, match="paths must be integers from 0 to 1"):
        permute_experts([[[0]], [[2]]], experts=2)
