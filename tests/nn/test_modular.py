import pytest
import torch
import torch.nn.functional as F

from heldout.nn import ModularMLP, PowerActivation, TokenSumMLP

PAIRS = torch.cartesian_prod(torch.arange(7), torch.arange(7))


def test_modular_mlp_is_the_network_on_one_hot_inputs():
    model = ModularMLP(7, 12)
    one_hot = torch.cat([F.one_hot(PAIRS[:, 0], 7), F.one_hot(PAIRS[:, 1], 7)], 1).float()
    expected = (one_hot @ model.embed.weight).square() @ model.output.weight.T
    torch.testing.assert_close(model(PAIRS), expected)


def test_token_sum_mlp_is_the_network_layer_by_layer_with_its_gradients():
    model = TokenSumMLP(7, dim=20, width=8)
    tokens = model.hidden(model.embed(PAIRS))
    expected = model.unembed(model.expand(tokens.sum(1).relu()))
    torch.testing.assert_close(model(PAIRS), expected)
    labels = PAIRS.sum(1) % 7
    slow = torch.autograd.grad(F.cross_entropy(expected, labels), list(model.parameters()))
    fast = torch.autograd.grad(F.cross_entropy(model(PAIRS), labels), list(model.parameters()))
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("model", [ModularMLP(7, 12), TokenSumMLP(7, dim=20, width=8)])
def test_both_networks_can_be_differentiated_twice(model):
    loss = F.cross_entropy(model(PAIRS), PAIRS.sum(1) % 7)
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()))
    assert all(bool(g.isfinite().all()) for g in second)


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_power_activation_and_its_gradient(exponent):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    power = PowerActivation(exponent)
    assert torch.equal(power(x.detach()), x.detach().pow(exponent))
    assert torch.autograd.gradcheck(power, x)
    assert torch.autograd.gradgradcheck(power, x)


def test_power_activation_works_under_torch_func():
    x = torch.randn(4, 3)
    per_example = torch.func.vmap(torch.func.grad(lambda v: PowerActivation(2)(v).sum()))(x)
    torch.testing.assert_close(per_example, 2 * x)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_variants_train_every_parameter(norm):
    model = ModularMLP(7, 12, norm=norm, dropout=0.1)
    F.cross_entropy(model(PAIRS), PAIRS.sum(1) % 7).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_initial_weights_have_the_scale_of_the_paper():
    model = ModularMLP(59, 256)
    for weight, _ in model.neuron_weights():
        assert weight.std().item() == pytest.approx(0.5 / 512 ** (1 / 3), rel=0.05)


def test_bad_options_and_inputs_are_named():
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'layer' or None"):
        ModularMLP(7, 8, norm="group")
    with pytest.raises(ValueError, match="p >= 2 and width >= 1"):
        ModularMLP(1, 8)
    with pytest.raises(ValueError, match="exponent must be at least 1"):
        PowerActivation(0)
    for model in (ModularMLP(7, 8), TokenSumMLP(7)):
        with pytest.raises(ValueError, match=r"must be \(batch, 2\)"):
            model(torch.zeros(4, 3, dtype=torch.long))
