"""Tokens from numbers, against the layers written out."""

import pytest
import torch
from torch.nn import functional as F

from heldout.nn import FeatureSpec, JobGraphEncoder, ModalityEncoder

SPECS = {
    "buffer": FeatureSpec("scalar"),
    "history": FeatureSpec("series", 6),
    "sizes": FeatureSpec("vector", 5),
    "image": FeatureSpec("features", 7),
}


def observed(*lead):
    torch.manual_seed(1)
    return {name: torch.randn(*lead, spec.size) for name, spec in SPECS.items()}


def test_each_token_is_that_of_its_own_feature_by_the_published_layers():
    torch.manual_seed(0)
    encoder, seen = ModalityEncoder(SPECS, width=11, hidden=9), observed(2, 3)
    tokens = encoder(seen)
    assert tokens.shape == (2, 3, 4, 11)
    scalar, series, vector = encoder.encoders[0], encoder.encoders[1], encoder.encoders[2]
    row = {name: value[1, 2] for name, value in seen.items()}
    hidden = F.leaky_relu(row["buffer"] * scalar[0].weight[:, 0] + scalar[0].bias)
    assert torch.allclose(tokens[1, 2, 0], encoder.maps[0](hidden), atol=1e-6)
    weight, bias = series.convolution.weight, series.convolution.bias
    slid = [[(row["history"][k : k + 4] * weight[f, 0]).sum() + bias[f] for k in range(3)] for f in range(9)]
    assert torch.allclose(tokens[1, 2, 1], encoder.maps[1](F.leaky_relu(torch.tensor(slid)).flatten()), atol=1e-5)
    hidden = F.leaky_relu(vector[0].weight @ row["sizes"] + vector[0].bias)
    assert torch.allclose(tokens[1, 2, 2], encoder.maps[2](hidden), atol=1e-6)
    assert torch.allclose(tokens[1, 2, 3], encoder.maps[3](row["image"]), atol=1e-6)


def test_a_token_does_not_depend_on_the_other_features():
    encoder, seen = ModalityEncoder(SPECS, width=11, hidden=9), observed(2)
    other = seen | {"sizes": seen["sizes"] + 1, "unread": torch.zeros(2, 1)}
    changed = (encoder(seen) - encoder(other)).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_a_graph_is_the_mean_of_nodes_that_hear_from_their_neighbours():
    torch.manual_seed(0)
    encoder = JobGraphEncoder(3, hidden=4)
    nodes, edges = torch.rand(5, 3) + 0.1, torch.zeros(5, 5)
    edges[0, 1] = edges[0, 3] = edges[2, 0] = 1
    nodes[4] = 0  # not there
    first, second = encoder.layers
    found = nodes
    for layer in (first, second):
        heard = torch.stack(
            [sum((found[j] for j in range(5) if edges[i, j]), torch.zeros_like(found[0])) for i in range(5)]
        )
        found = F.leaky_relu(layer.lin_root(found) + layer.lin_rel(heard))
        found[4] = 0
    assert torch.allclose(encoder.node_embeddings(nodes, edges), found, atol=1e-6)
    assert torch.allclose(encoder(nodes, edges), found[:4].mean(0), atol=1e-6)
    batched = encoder(nodes.expand(2, 3, 5, 3), edges.expand(2, 3, 5, 5))
    assert torch.allclose(batched, found[:4].mean(0).expand(2, 3, 4), atol=1e-6)


def test_a_graph_is_a_feature_beside_others():
    specs = {"jobs": FeatureSpec("graph", 3, edges="links"), "load": FeatureSpec("scalar")}
    encoder = ModalityEncoder(specs, width=8, hidden=6)
    seen = {"jobs": torch.rand(2, 5, 4, 3), "links": torch.zeros(2, 5, 4, 4), "load": torch.zeros(2, 5, 1)}
    assert encoder(seen).shape == (2, 5, 2, 8)


def test_bad_features_are_refused_by_name():
    encoder = ModalityEncoder(SPECS, width=8)
    seen = observed(2)
    with pytest.raises(ValueError, match="'image'"):
        encoder({name: value for name, value in seen.items() if name != "image"})
    with pytest.raises(ValueError, match="sizes must have 5 numbers"):
        encoder(seen | {"sizes": torch.zeros(2, 4)})
    for arguments, message in (
        (("scalar", 2), "size"), (("series", 3, 4), "kernel"), (("graph", 3), "edges"), (("vector", 0), "size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FeatureSpec(*arguments)
    with pytest.raises(ValueError, match="kind"):
        FeatureSpec("picture")
    with pytest.raises(ValueError, match="specs"):
        ModalityEncoder({}, 8)
    with pytest.raises(ValueError, match="nodes and edges"):
        JobGraphEncoder(3)(torch.ones(4, 3), torch.ones(4, 3))


def test_features_of_another_type_and_graphs_without_nodes_are_read():
    pytest.importorskip("torch_geometric")
    from heldout.nn import JobGraphEncoder

    encoder = ModalityEncoder({"a": FeatureSpec("scalar"), "b": FeatureSpec("series", 5)}, 8, hidden=4)
    doubles = {"a": torch.ones(2, 1, dtype=torch.float64), "b": torch.ones(2, 5, dtype=torch.int64)}
    floats = {name: value.float() for name, value in doubles.items()}
    assert torch.equal(encoder(doubles), encoder(floats))
    assert torch.equal(JobGraphEncoder(3, hidden=4)(torch.zeros(2, 4, 3), torch.zeros(2, 4, 4)), torch.zeros(2, 4))
