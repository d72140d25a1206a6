import pytest
import torch
import torch.nn.functional as F

from heldout.nn import TwoLayerReLU


def test_cross_entropy_of_the_logits_is_the_logistic_loss_of_the_score():
    network = TwoLayerReLU(6, 5, seed=1)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 2
    logistic = F.softplus(-(2.0 * labels - 1) * network.score(x)).mean()
    torch.testing.assert_close(F.cross_entropy(network(x), labels), logistic)


def test_the_score_is_the_signed_sum_of_rectified_projections():
    network = TwoLayerReLU(4, 3, bias=True)
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.5, -0.5, 0.0]))
    x = torch.ones(1, 4)
    by_hand = sum(
        network.head[j] * max(0.0, float((network.weight[j].sum() + network.bias[j]).detach())) for j in range(3)
    )
    assert network.score(x).item() == pytest.approx(float(by_hand), abs=1e-6)


def test_the_head_has_signs_of_equal_size_and_is_trained_only_when_asked():
    network = TwoLayerReLU(4, 400)
    torch.testing.assert_close(network.head.abs(), torch.full((400,), 0.05))
    assert abs(network.head.sign().sum().item()) < 80
    assert "head" in network.state_dict()
    assert [name for name, _ in network.named_parameters()] == ["weight"]
    free = TwoLayerReLU(4, 400, fixed_head=False, bias=True)
    assert sorted(name for name, _ in free.named_parameters()) == ["bias", "head", "weight"]


def test_the_initialisation_has_its_standard_deviation_and_is_seeded():
    assert TwoLayerReLU(500, 100, std=1e-3).weight.std().item() == pytest.approx(1e-3, rel=0.02)
    assert TwoLayerReLU(400, 100).weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert TwoLayerReLU(5, 4, seed=2).weight.equal(TwoLayerReLU(5, 4, seed=2).weight)


@pytest.mark.parametrize("options", [{"dim": 0}, {"width": 0}, {"std": -1.0}, {"std": float("inf")}])
def test_wrong_input_is_named(options):
    with pytest.raises(ValueError, match="must be"):
        TwoLayerReLU(**({"dim": 3, "width": 3} | options))
