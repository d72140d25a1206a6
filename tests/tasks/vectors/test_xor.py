import pytest
import torch

from heldout.tasks import xor_clusters


def test_centres_are_orthogonal_and_as_long_as_the_signal_says():
    centers = xor_clusters(4, 300, signal=50.0).centers
    torch.testing.assert_close(centers @ centers.T, 50.0 * torch.eye(2), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_clusters_have_their_means_and_unit_variances(noise):
    data = xor_clusters(40_000, 20, signal=30.0, noise=noise, seed=3)
    projection = data.x @ data.centers.T / 30.0
    for axis, label in ((0, 1), (1, -1)):
        own = data.y_clean == label
        assert ((projection[own, axis] > 0).double().mean() - 0.5).abs() < 0.02  # as many at +mu as at -mu
        centre = torch.where(projection[own, axis, None] > 0, data.centers[axis], -data.centers[axis])
        residual = data.x[own] - centre
        assert residual.mean(0).abs().max() < 0.04
        assert (residual.var(0) - 1).abs().max() < 0.05


def test_the_share_of_flipped_labels_is_the_flip_probability():
    data = xor_clusters(20_000, 2, signal=1.0, flip=0.2)
    assert abs((data.y != data.y_clean).double().mean().item() - 0.2) < 0.01
    assert xor_clusters(100, 2, signal=1.0, flip=0.0).y.equal(xor_clusters(100, 2, signal=1.0, flip=0.0).y_clean)


def test_balanced_clusters_have_equal_sizes_and_equally_many_flips():
    data = xor_clusters(80, 50, signal=400.0, flip=0.1, balanced=True)
    projection = data.x @ data.centers.T
    cluster = 2 * projection.abs().argmax(1) + (
        projection.gather(1, projection.abs().argmax(1, keepdim=True))[:, 0] > 0
    )
    assert cluster.bincount().tolist() == [20] * 4
    assert cluster[data.y != data.y_clean].bincount().tolist() == [2] * 4


def test_the_larger_projection_tells_the_classes_apart_and_no_linear_rule_does():
    train = xor_clusters(400, 200, signal=80.0, balanced=True, seed=1)
    test = train.sample(4000, seed=2)
    projections = (test.x @ train.centers.T).abs()
    assert (torch.where(projections[:, 0] > projections[:, 1], 1.0, -1.0) == test.y_clean).all()
    rules = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    rules = torch.cat([rules, train.centers.T, train.centers.sum(0)[:, None], (train.y @ train.x)[:, None]], dim=1)
    accuracy = (((test.x @ rules).sign() * test.y_clean[:, None]) > 0).double().mean(0)
    assert accuracy.max() < 0.5 + 4 / 4000**0.5


def test_examples_are_nearly_orthogonal_in_high_dimension():
    gram = (x := xor_clusters(40, 20_000, signal=400.0).x) @ x.T / 20_000
    assert (gram - gram.diag().diag()).abs().max() < 0.08
    assert (gram.diag() - 1).abs().max() < 0.08


def test_the_same_seed_gives_the_same_data_and_samples():
    first, again, other = (xor_clusters(20, 30, signal=9.0, seed=seed) for seed in (5, 5, 6))
    assert first.x.equal(again.x)
    assert not first.x.equal(other.x)
    assert first.sample(7, seed=1).x.equal(again.sample(7, seed=1).x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 3}, "n >= 4"),
        ({"dim": 1}, "dim >= 2"),
        ({"signal": 0.0}, "signal"),
        ({"signal": float("nan")}, "signal"),
        ({"flip": 0.5}, "flip"),
        ({"flip": -0.1}, "flip"),
        ({"n": 10, "balanced": True}, "divisible by 4"),
        ({"noise": "cauchy"}, "noise"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        xor_clusters(**({"n": 8, "dim": 10, "signal": 4.0} | options))


def test_a_sample_needs_at_least_one_example():
    with pytest.raises(ValueError, match="at least 1"):
        xor_clusters(8, 10, signal=4.0).sample(0, seed=0)
