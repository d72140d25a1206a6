import pytest
import torch

from heldout.tasks import BLOCK_SHIFTS, BlockModel, block_shifts

pytest.importorskip("torch_geometric")

MODEL = BlockModel(nodes=800, signal=0.3, kind="words", world=1000)


@pytest.fixture(scope="module")
def shifts():
    return block_shifts(MODEL, count=12, seed=5)


def homophily(graph):
    return (graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).double().mean().item()


def degree(graph):
    return graph.num_edges / len(graph.y)


def test_there_are_as_many_graphs_of_each_axis_and_no_two_alike(shifts):
    assert tuple(shifts) == BLOCK_SHIFTS
    graphs = [graph for found in shifts.values() for graph in found]
    assert len(graphs) == 48
    assert len({graph.y.numpy().tobytes() for graph in graphs}) == 48


def test_noise_has_severities_of_a_tenth_to_seven(shifts):
    # A bag of words is 0 or 1: what lies below 0 is half of the noise.
    below = [(-graph.x[graph.x < 0]).square().mean().sqrt().item() for graph in shifts["noise"]]
    assert 0.05 < min(below) < 0.3
    assert 0.5 < max(below) < 0.75
    assert all(homophily(graph) == pytest.approx(0.8, abs=0.05) and degree(graph) == 6 for graph in shifts["noise"])


def test_masking_takes_columns(shifts):
    shares = [(graph.x.abs().sum(0) == 0).double().mean().item() for graph in shifts["masking"]]
    assert min(shares) < 0.3
    assert 0.5 < max(shares) < 0.9
    assert all(set(graph.x.unique().tolist()) == {0.0, 1.0} for graph in shifts["masking"])


def test_homophily_falls_to_four_tenths(shifts):
    shares = [homophily(graph) for graph in shifts["homophily"]]
    assert 0.35 < min(shares) < 0.55
    assert 0.65 < max(shares) < 0.85
    assert all(degree(graph) == 6 for graph in shifts["homophily"])


def test_priors_and_degree_move_together(shifts):
    degrees = torch.tensor([degree(graph) for graph in shifts["prior"]])
    largest = torch.tensor([graph.y.bincount().max().item() / 800 for graph in shifts["prior"]])
    assert 1.5 <= degrees.min() < 3
    assert 4.5 < degrees.max() <= 6
    assert torch.corrcoef(torch.stack([degrees, largest]))[0, 1] < -0.95
    assert largest.max() < 0.57
    assert all(homophily(graph) > 0.7 for graph in shifts["prior"])


def test_seeds_decide_and_the_world_stays():
    model = BlockModel(nodes=60, world=3)
    first, again, other = (block_shifts(model, 2, seed) for seed in (1, 1, 2))
    for axis in BLOCK_SHIFTS:
        for one, two, three in zip(first[axis], again[axis], other[axis], strict=True):
            assert torch.equal(one.x, two.x)
            assert torch.equal(one.edge_index, two.edge_index)
            assert not torch.equal(one.x, three.x)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(block_shifts(model, 2, generator)["noise"][0].x, first["noise"][0].x)


def test_priors_of_the_model_are_where_the_shift_begins():
    model = BlockModel(nodes=600, classes=3, priors=(0.0, 0.1, 0.9))
    shares = [graph.y.bincount(minlength=3)[2].item() / 600 for graph in block_shifts(model, 8, 0)["prior"]]
    assert max(shares) > 0.6
    assert min(shares) < 0.5


def test_a_count_of_none_is_refused():
    with pytest.raises(ValueError, match="count"):
        block_shifts(MODEL, 0)
