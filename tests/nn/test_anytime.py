import pytest
import torch
from torch import nn

from heldout.nn import AnytimeMLP


@pytest.fixture(params=[("sigmoid", 1), ("tanh", 3), ("relu", 2)])
def network(request):
    activation, units = request.param
    torch.manual_seed(0)
    net = AnytimeMLP(4, 3, groups=5, units_per_group=units, activation=activation).double()
    nn.init.normal_(net.biases)
    return net


def test_it_is_the_sum_of_its_groups(network):
    x = torch.randn(6, 4, dtype=torch.float64)
    act, units = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[network.activation], 0
    for used in range(6):
        expected = torch.zeros(6, 3, dtype=torch.float64)
        for row in range(6):
            expected[row] = network.biases[0]
            for k in range(used):
                expected[row] += network.biases[k + 1]
                for unit in range(k * network.units_per_group, (k + 1) * network.units_per_group):
                    height = act(network.hidden.weight[unit] @ x[row] + network.hidden.bias[unit])
                    expected[row] += network.output.weight[:, unit] * height
                    units += 1
        assert torch.allclose(network(x, groups=used), expected)
        assert torch.allclose(network.staged(x)[used], expected)
        if used:
            assert torch.allclose(network.truncated(used)(x), expected)
    assert torch.equal(network(x), network(x, groups=5))
    assert units == 6 * 15 * network.units_per_group


def test_a_truncated_network_is_an_ordinary_one_of_its_own(network):
    plain = network.truncated(2)
    assert [type(part).__name__ for part in plain] == ["Linear", type(network._act).__name__, "Linear"]
    assert plain[0].out_features == 2 * network.units_per_group
    with torch.no_grad():
        plain[0].weight.zero_()
    assert network.hidden.weight.abs().min() > 0


def test_it_works_on_more_axes_and_in_half_precision():
    net = AnytimeMLP(4, 3, groups=5)
    x = torch.randn(2, 7, 4)
    assert torch.allclose(net(x)[1], net(x[1]), atol=1e-6)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_reach_the_groups_that_are_used(network):
    network(torch.randn(6, 4, dtype=torch.float64), groups=2).sum().backward()
    units = 2 * network.units_per_group
    assert network.biases.grad[:3].abs().min() > 0
    assert network.biases.grad[3:].abs().max() == 0
    assert network.output.weight.grad[:, units:].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups"),
        ({"groups": 2, "units_per_group": 0}, "units_per_group"),
        ({"groups": 2, "activation": "gelu"}, "activation"),
    ],
)
def test_bad_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AnytimeMLP(4, 3, **options)


def test_groups_beyond_those_there_are_refused(network):
    x = torch.zeros(1, 4, dtype=torch.float64)
    for call in (lambda: network(x, groups=6), lambda: network(x, groups=-1), lambda: network.truncated(0)):
        with pytest.raises(ValueError, match="groups"):
            call()
