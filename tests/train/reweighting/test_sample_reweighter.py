import math

import pytest
import torch

from heldout.losses import rff_decorrelation
from heldout.train import SampleReweighter


def dependent(n=300, seed=0):
    g = torch.Generator().manual_seed(seed)
    bits = (torch.rand(n, 1, generator=g) < 0.5).float()
    other = torch.where(torch.rand(n, 1, generator=g) < 0.85, bits, 1 - bits)
    return torch.cat([bits, other, torch.randn(n, 1, generator=g)], 1) * torch.tensor([1.0, 40.0, 0.01])


def dependence(z, weights):
    known = (z - z.mean(0)) / z.std(0)
    return rff_decorrelation(known, weights, None, 100, torch.Generator().manual_seed(9)).item()


def test_weights_make_variables_independent_whatever_their_scale():
    z = dependent()
    weights = SampleReweighter(None, queues=0, steps=60).weights(z)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.min() > 0
    assert not weights.requires_grad
    assert dependence(z, weights) < 0.1 * dependence(z, torch.ones(300))
    rare = (z[:, 0] > 0.5) != (z[:, 1] > 20)
    assert weights[rare].mean() > 2 * weights[~rare].mean()


def test_without_a_pair_or_a_step_weights_stay_at_one():
    z = dependent(20)
    weigher = SampleReweighter(None)
    weigher.mask = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(weigher.weights(z), torch.ones(20))
    assert torch.equal(SampleReweighter(None, steps=0).weights(z), torch.ones(20))
    assert torch.equal(SampleReweighter(None).weights(z[:1]), torch.ones(1))
    assert torch.equal(SampleReweighter(None).weights(torch.ones(5, 3)), torch.ones(5))


def test_a_permutation_of_the_batch_permutes_its_weights():
    z, order = dependent(50), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    plain, moved = (SampleReweighter(None, seed=3).weights(rows) for rows in (z, z[order]))
    assert torch.allclose(plain[order], moved, atol=1e-4)


def test_pairs_within_a_cluster_are_left_alone():
    z = dependent()
    weigher = SampleReweighter(2, queues=0, steps=60)
    groups = torch.arange(300) % 5
    labels = weigher.cluster(z, groups)
    assert labels[0] == labels[1] != labels[2]  # the dependence of the first two is the same in all folds
    assert torch.equal(weigher.mask, labels[:, None] != labels)
    assert dependence(z[:, :2], weigher.weights(z)) > 0.7 * dependence(z[:, :2], torch.ones(300))
    assert SampleReweighter(None).cluster(z, groups) is None


def test_a_constant_variable_is_left_out_and_nothing_reaches_the_encoder():
    z = torch.cat([dependent(40), torch.full((40, 1), 0.1)], 1).requires_grad_()
    weights = SampleReweighter(None).weights(z)
    assert weights.isfinite().all()
    assert weights.std() > 0
    assert not weights.requires_grad


def test_a_last_step_goes_down_a_given_gradient_and_its_scale_cancels():
    z, gradient = dependent(4), torch.tensor([3.0, 1.0, 1.0, -1.0])
    seen = []

    def pull(weights, scale):
        seen.append(weights)
        return scale * gradient

    found = [SampleReweighter(None, steps=0, pull_rate=0.5).weights(z, lambda w, s=s: pull(w, s)) for s in (1, 1e-25)]
    centred = gradient - gradient.mean()
    expected = 4 * (-0.5 * centred / centred.square().mean().sqrt()).softmax(0)
    for weights in found:
        assert torch.allclose(weights, expected, atol=1e-5)
    assert torch.equal(seen[0], torch.ones(4))
    equal = SampleReweighter(None, steps=0).weights(z, lambda w: torch.full((4,), 7.0))
    assert torch.equal(equal, torch.ones(4))
    assert torch.equal(SampleReweighter(None, steps=0, pull_rate=0.0).weights(z, lambda w: gradient), torch.ones(4))


def test_blocks_are_filled_in_turn_and_then_move_the_slowest_by_the_whole_momentum():
    weigher = SampleReweighter(None, queues=2, momentum=0.8, steps=0)
    blocks = [torch.full((4, 2), float(value)) for value in (1, 2)]
    for block in blocks:
        weigher.weights(block)
    assert [float(z[0, 0]) for z, _ in weigher.queue] == [1, 2]
    weigher.weights(torch.full((3, 2), 10.0), lambda w: torch.tensor([1.0, 0.0, -1.0]))
    (fast, weights), (slow, _) = weigher.queue
    assert fast[:, 0].tolist() == pytest.approx([0.4 * 1 + 0.6 * 10] * 3 + [1])
    assert slow[:, 0].tolist() == pytest.approx([0.8 * 2 + 0.2 * 10] * 3 + [2])
    new = 3 * (torch.tensor([-1.0, 0.0, 1.0]) * 0.1 / math.sqrt(2 / 3)).softmax(0)
    assert torch.allclose(weights[:3], 0.4 + 0.6 * new, atol=1e-5)
    assert blocks[0][0, 0] == 1  # the caller's tensors are not written to


def test_what_is_remembered_counts():
    z, batch = dependent(200), dependent(8, seed=5)
    weigher, alone = (
        SampleReweighter(None, queues=1, steps=1, seed=4),
        SampleReweighter(None, queues=1, steps=1, seed=4),
    )
    weigher.queue.append((z, torch.ones(200)))
    assert not torch.allclose(weigher.weights(batch), alone.weights(batch), atol=1e-3)


Z = torch.randn(6, 3)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: SampleReweighter(0), "clusters"),
        (lambda: SampleReweighter(queues=-1), "queues"),
        (lambda: SampleReweighter(momentum=1.5), "momentum"),
        (lambda: SampleReweighter(steps=-1), "steps"),
        (lambda: SampleReweighter(lr=0.0), "lr"),
        (lambda: SampleReweighter(pull_rate=-1.0), "pull_rate"),
        (lambda: SampleReweighter(num_features=0), "num_features"),
        (lambda: SampleReweighter(form="other"), "form"),
        (lambda: SampleReweighter().weights(Z[0]), "z"),
        (lambda: SampleReweighter().weights(Z[:0]), "z"),
        (lambda: SampleReweighter().weights(Z * math.nan), "z"),
        (lambda: SampleReweighter().weights(Z, lambda w: w[:2]), "pull"),
        (lambda: SampleReweighter().weights(Z, lambda w: w * math.inf), "pull"),
        (lambda: SampleReweighter(4).cluster(Z, torch.arange(6) % 2), "clusters"),
        (lambda: SampleReweighter(2).cluster(Z, torch.zeros(6, dtype=torch.int64)), "groups"),
    ],
)
def test_bad_input_is_refused_by_name(call, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        call()


def test_another_width_than_before_is_refused():
    weigher = SampleReweighter()
    weigher.weights(Z)
    with pytest.raises(ValueError, match="3 columns"):
        weigher.weights(Z[:, :2])
