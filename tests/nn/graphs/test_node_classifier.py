import math

import pytest
import torch
import torch.nn.functional as F

from heldout.nn import NODE_ENCODERS, NodeClassifier

pytest.importorskip("torch_geometric")

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # a path of three, and a node alone


def features(columns=6):
    return torch.randn(4, columns, generator=torch.Generator().manual_seed(0))


def model(encoder, **options):
    torch.manual_seed(0)
    return NodeClassifier(encoder, 6, 3, **options).eval()


@pytest.mark.parametrize("encoder", NODE_ENCODERS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_node_sees_as_many_steps_far_as_there_are_layers(encoder, layers):
    network, x = model(encoder, layers=layers), features()
    path = torch.stack([torch.arange(3), torch.arange(1, 4)])
    edges = torch.cat([path, path.flip(0)], 1)
    x.requires_grad_()
    network(x, edges)[0].square().sum().backward()
    seen = x.grad.abs().sum(1) > 0
    reach = 0 if encoder == "mlp" else layers
    assert seen.tolist() == [node <= reach for node in range(4)]


def test_the_encoder_ends_without_an_activation():
    for encoder in NODE_ENCODERS:
        network = model(encoder, embedding=5)
        given = (features(), EDGES) if network.takes_edges else (features(),)
        embeddings = network.encoder(*given)
        assert embeddings.shape == (4, 5)
        assert (embeddings < 0).any()
        assert torch.equal(network(features(), EDGES), network.head(embeddings))


def test_gcn_by_hand():
    network, x = model("gcn", hidden=7), features()
    adjacency = torch.eye(4)
    adjacency[EDGES[0], EDGES[1]] = 1.0
    degree = adjacency.sum(1)
    smooth = adjacency / (degree[:, None] * degree[None]).sqrt()
    (first, first_bias), (second, second_bias) = [(layer.lin.weight, layer.bias) for layer in network.encoder.convs]
    hidden = (smooth @ x @ first.T + first_bias).relu()
    assert hidden.shape == (4, 7)
    expected = network.head(smooth @ hidden @ second.T + second_bias)
    torch.testing.assert_close(network(x, EDGES), expected)


def test_mlp_by_hand():
    network, x = model("mlp", hidden=7, embedding=4), features()
    first, second = network.encoder.lins
    expected = network.head(second(F.relu(first(x))))
    torch.testing.assert_close(network(x, EDGES), expected)


@pytest.mark.parametrize("encoder", NODE_ENCODERS)
def test_dropout_acts_in_training_alone(encoder):
    network = model(encoder, dropout=0.5)
    assert torch.equal(network(features(), EDGES), network(features(), EDGES))
    network.train()
    assert not torch.equal(network(features(), EDGES), network(features(), EDGES))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "cnn"}, "encoder"), ({"features": 0}, "features"), ({"classes": 0}, "classes"),
        ({"hidden": 0}, "hidden"), ({"embedding": -1}, "embedding"), ({"layers": 0}, "layers"),
        ({"dropout": 1.5}, "dropout"), ({"dropout": math.nan}, "dropout"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        NodeClassifier(**{"encoder": "gcn", "features": 6, "classes": 3} | options)
