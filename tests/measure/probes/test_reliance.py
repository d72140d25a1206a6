import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heldout.measure import feature_reliance, randomize_features, randomized_feature_score
from heldout.tasks import slabs


@pytest.fixture(scope="module")
def data():
    return slabs(4000, 6, "LMS-5", seed=1)


def linear_rule(data):
    return lambda x: x @ data.Q[0]


def test_randomizing_nothing_leaves_the_inputs_as_they_are(data):
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert randomize_features(data.x, [], order).equal(data.x)
    assert randomized_feature_score(linear_rule(data), data.x, data.y, slice(0)) == (1.0, 0.0)
    same = randomize_features(data.x, data.blocks["linear"], torch.arange(4000), data.Q)
    torch.testing.assert_close(same, data.x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_randomizing_everything_leaves_chance(data, metric):
    found = randomized_feature_score(linear_rule(data), data.x, data.y, slice(None), metric=metric, repeats=10)
    assert abs(found.mean - 0.5) < 3 * 0.58 / 4000**0.5


def test_a_rotated_block_is_shuffled_in_its_own_coordinates(data):
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    mixed = randomize_features(data.x, data.blocks["linear"], order, data.Q) @ data.Q.T
    torch.testing.assert_close(mixed[:, 0], data.coordinates[order, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[:, 1:], data.coordinates[:, 1:], atol=1e-5, rtol=0)


def test_one_permutation_keeps_the_dependence_within_a_block():
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    for blocks in ([0, 1], [[0], [1]]):
        mixed = randomize_features(x, blocks, order)
        assert mixed[:, 0].equal(mixed[:, 1])
        assert not mixed[:, 0].equal(mixed[:, 2])


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 4), max_size=5), st.integers(0, 100))
def test_every_feature_keeps_its_values(columns, seed):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(seed))
    mixed = randomize_features(x, sorted(columns), torch.randperm(20, generator=torch.Generator().manual_seed(seed)))
    assert mixed.sort(dim=0).values.equal(x.sort(dim=0).values)


def test_blocks_may_be_channels_regions_or_functions():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    swap = torch.tensor([1, 0])
    channel = randomize_features(x, [1], swap)
    assert channel[:, 1].equal(x.flip(0)[:, 1])
    assert channel[:, [0, 2]].equal(x[:, [0, 2]])
    region = randomize_features(x, (slice(None), slice(0, 2)), swap)
    assert region[:, :, :2].equal(x.flip(0)[:, :, :2])
    assert region[:, :, 2:].equal(x[:, :, 2:])
    assert randomize_features(x, lambda own, donors: own - donors, swap).equal(x - x.flip(0))
    assert randomize_features(x, slice(0, 2), swap).equal(randomize_features(x, [0, 1], swap))


def test_reliance_tells_the_feature_in_use_from_the_other(data):
    found = feature_reliance(linear_rule(data), data.x, data.y, data.blocks, Q=data.Q)
    assert found["linear"].intact == 1.0
    assert found["linear"].randomized.mean == pytest.approx(0.5, abs=0.03)
    assert found["linear"].others_randomized.mean == 1.0
    assert found["5-slab"].randomized.mean == 1.0
    assert found["5-slab"].others_randomized.mean == pytest.approx(0.5, abs=0.03)


def test_auc_is_that_of_scikit_learn_with_ties_and_logits_of_every_form():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (300,), generator=generator).float()
    y = torch.randint(0, 2, (300,), generator=generator)
    expected = roc_auc_score(y, scores)
    for outputs in (scores, scores[:, None], torch.stack([-scores, torch.zeros(300)], dim=1)):
        assert randomized_feature_score(lambda _, o=outputs: o, scores[:, None], y, slice(0)).mean == pytest.approx(
            expected
        )


def test_a_module_is_scored_in_eval_mode_and_left_as_it_was(data):
    model = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.9)).train()
    first, again = (randomized_feature_score(model, data.x, data.y, [0], metric="accuracy") for _ in range(2))
    assert first == again
    assert model.training


def test_it_agrees_with_permutation_importance_of_scikit_learn(data):
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import LogisticRegression

    x, y = data.coordinates.numpy(), data.y.numpy()
    model = LogisticRegression().fit(x, y)
    drop = permutation_importance(model, x, y, n_repeats=10, random_state=0).importances_mean
    weight, bias = torch.from_numpy(model.coef_[0]).float(), float(model.intercept_[0])
    for column in (0, 3):
        found = randomized_feature_score(
            lambda inputs: inputs @ weight + bias, data.coordinates, data.y, [column], metric="accuracy", repeats=10
        )
        assert 1 - found.mean == pytest.approx(drop[column], abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": torch.zeros(4, dtype=torch.long)}, r"both classes|y must be integers from 0 to 1"),
        ({"y": torch.tensor([0, 1, 2, 0])}, r"both classes|y must be integers from 0 to 1"),
        ({"y": torch.zeros(3)}, r"a label for each|x and y must be equally long"),
        ({"Q": torch.eye(3)}, r"Q must be \(2, 2\)"),
        ({"Q": torch.ones(2, 2)}, "orthogonal"),
        ({"repeats": 0}, "repeats"),
        ({"metric": "f1"}, "one of 'auc', 'accuracy'"),
        ({"model": lambda x: x * float("nan")}, "finite"),
    ],
)
def test_wrong_input_is_named(options, message):
    defaults = {"model": nn.Identity(), "x": torch.eye(4)[:, :2], "y": torch.tensor([0, 1, 0, 1]), "block": [0]}
    with pytest.raises(ValueError, match=message):
        randomized_feature_score(**(defaults | options))


def test_reliance_needs_two_blocks_and_a_permutation_of_all_examples():
    with pytest.raises(ValueError, match="at least 2 blocks"):
        feature_reliance(nn.Identity(), torch.eye(2), torch.tensor([0, 1]), {"all": [0, 1]})
    with pytest.raises(ValueError, match=r"permutation must have shape|permutation must be integers from 0 to 1"):
        randomize_features(torch.eye(2), [0], torch.arange(3))
