import pytest
import torch
from torch import nn

from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks import (
    Drawings,
    FixedStatistics,
    drawing_transfer,
    retrieval,
)
from heldout.tasks.images import drawing_transfer as module

SOURCES = [STYLE, TAGS, ENET]


def naive_retrieval(features):
    right = []
    for style in range(len(features)):
        for thing in range(len(features[0])):
            means = []
            for other in range(len(features[0])):
                rest = [features[s][other] / features[s][other].norm() for s in range(len(features)) if s != style]
                mean = sum(rest)
                means.append(mean / mean.norm())
            asked = features[style][thing] / features[style][thing].norm()
            right.append(max(range(len(means)), key=lambda other: float(asked @ means[other])) == thing)
    return 100 * sum(right) / len(right)


def test_retrieval_is_the_nearest_mean_of_the_other_styles():
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(12, 5, generator=generator)
    features = things + torch.randn(4, 12, 5, generator=generator)
    found = retrieval(nn.Identity(), features)
    assert found == pytest.approx(naive_retrieval(features))
    assert 20 < found < 100
    assert retrieval(nn.Identity(), features * torch.rand(4, 12, 1, generator=generator)) == pytest.approx(found)


def test_retrieval_asks_in_evaluation_mode_and_leaves_the_mode():
    model = nn.Sequential(nn.Dropout(0.9)).train()
    assert retrieval(model, torch.eye(6).expand(3, 6, 6)) == 100
    assert model.training


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 0, 2), (4, 3)])
def test_retrieval_needs_two_styles_of_things(shape):
    with pytest.raises(ValueError, match="at least 2 styles"):
        retrieval(nn.Identity(), torch.zeros(shape))


def test_fixed_statistics_stay_while_weights_learn():
    net = FixedStatistics(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Dropout())
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()(torch.randn(8, 3)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert net[0][1].weight.grad is not None
    assert net[1].training
    assert not net.eval()[1].training


@pytest.fixture
def small(monkeypatch):
    """Twenty things of two classes in four styles, on a network and inputs that need no package."""
    things = torch.arange(20).repeat(4)
    images = torch.zeros(80, 3, 8, 8, dtype=torch.uint8)
    names = tuple(map(str, range(20)))
    pictures = Drawings(images, things % 2, torch.arange(4).repeat_interleave(20), things, ("a", "b"), names)
    inputs = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) + 6.0 * (things % 2).unsqueeze(1)
    others = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))

    def upper(classes, seed):
        torch.manual_seed(seed)
        return FixedStatistics(nn.Linear(6, 8), nn.ReLU()).append(nn.Linear(8, classes))

    class Net(FixedStatistics):
        @property
        def head(self):
            return self[-1]

    monkeypatch.setattr(module, "_lower_outputs", lambda *sizes: (pictures, inputs, others))
    monkeypatch.setattr(module, "_upper", lambda classes, seed: Net(*upper(classes, seed)))
    return inputs, others


def test_things_are_dealt_once_and_the_target_shows_those_of_the_source_test(small):
    inputs, others = small
    problem = drawing_transfer(2, seed=1)

    def rows(part):
        return [int((inputs == row).all(1).nonzero()) for row in part[0]]

    train, val, source, target = map(rows, problem[:4])
    assert {row // 20 for row in train} == {row // 20 for row in val} == {row // 20 for row in source} == {0, 1, 3}
    assert {row // 20 for row in target} == {2}
    dealt = [{row % 20 for row in part} for part in (train, val, source)]
    assert sorted(thing for part in dealt for thing in part) == list(range(20))
    assert {row % 20 for row in target} == dealt[2]
    assert [len(part) for part in dealt] == [10, 2, 8]
    assert problem.train[1].tolist() == [row % 2 for row in train]
    assert problem.others_val.shape[1] + problem.others_test.shape[1] == 9
    found = torch.cat([problem.others_val, problem.others_test], dim=1)[0]
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, others[0].tolist()))


def test_the_seed_deals_things_and_starts_the_head(small):
    first, again, other = (drawing_transfer(0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.val[0], again.val[0])
    assert torch.equal(first.network.head.weight, again.network.head.weight)
    assert not torch.equal(first.val[0], other.val[0])
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_the_probe_is_stopped_by_the_loss_on_validation_data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 30, generator=generator), torch.arange(12) % 2  # nothing to learn: it can only overfit
    val = (torch.randn(50, 30, generator=generator), torch.arange(50) % 2)
    torch.manual_seed(0)
    network = FixedStatistics(nn.Identity())
    network.add_module("head", nn.Linear(30, 2))
    start = {name: value.clone() for name, value in network.head.state_dict().items()}
    module._probe(network, (x, y), val)
    with torch.no_grad():
        found = nn.functional.cross_entropy(network(val[0]), val[1])
    network.head.load_state_dict(start)
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        assert nn.functional.cross_entropy(network(val[0]), val[1]) >= found - 1e-6


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="features"):
        retrieval(nn.Identity(), torch.full((3, 4, 2), torch.nan))


def test_fewer_than_four_other_things_are_refused():
    with pytest.raises(ValueError, match="other_things"):
        drawing_transfer(0, other_things=3)


def test_the_probe_fits_the_head_alone(small):
    torch.manual_seed(0)
    problem = drawing_transfer(0)
    with torch.no_grad():
        right = (problem.network(problem.train[0]).argmax(1) == problem.train[1]).double().mean()
    assert right > 0.8
    assert all(p.grad is None for p in problem.network[0].parameters())


@pytest.mark.skipif(bool(missing(SOURCES)), reason=missing(SOURCES))
def test_the_upper_part_is_the_end_of_the_imagenet_network():
    from heldout.nn import efficientnet_lite0

    upper, whole = module._upper(3, 0), efficientnet_lite0(num_classes=3, seed=0)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in whole.named_children()]
    lower = whole[: names.index("stage6")]
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(images)), whole(images))
