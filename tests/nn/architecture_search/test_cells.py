import copy

import pytest
import torch
from torch import nn

from heldout.nn import (
    Genotype,
    GenotypeEdge,
    MixedOp,
    SearchCell,
    SearchNetwork,
    architecture_parameters,
    build_from_genotype,
    extract_edges,
)

NAMES = ["none", "skip_connect", "sep_conv_3x3"]


def network(**options):
    torch.manual_seed(0)
    return SearchNetwork(5, NAMES, **{"in_channels": 1, "channels": 4, "layers": 4, "nodes": 2, **options})


X = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))


def test_edges_are_chosen_as_by_hand():
    alphas = torch.tensor([
        # none skip  sep
        [5.0, 1.0, 0.0],  # node 0 <- 0: "none" strongest; of the others skip
        [0.0, 0.0, 2.0],  # node 0 <- 1
        [0.0, 3.0, 0.0],  # node 1 <- 0
        [9.0, 0.5, 1.0],  # node 1 <- 1: weak, "none" takes nearly all
        [0.0, 0.0, 1.0],  # node 1 <- node 0
    ])  # fmt: skip
    expected = [("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 2)]
    assert [tuple(edge) for edge in extract_edges(alphas, NAMES, 2)] == expected


def test_none_is_never_selected_and_counts_in_no_comparison_but_by_its_share():
    alphas = torch.zeros(9, 3)
    alphas[:, 0] = 10
    assert all(edge.primitive != "none" for edge in extract_edges(alphas, NAMES, 3))
    moved = torch.tensor([[4.0, 1.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.9, 0.0], [0.0, 0.9, 0.0], [0.0, 0.8, 0.0]])
    assert [edge.source for edge in extract_edges(moved, NAMES, 2)][2:] == [0, 1]
    assert extract_edges(moved[:2], NAMES, 1)[0].source == 0  # both edges of node 0 stay


def test_a_cell_is_the_sum_over_its_edges_node_by_node():
    torch.manual_seed(0)
    cell = SearchCell(3, 6, 4, nodes=3).eval()
    a, b = torch.randn(2, 3, 6, 5), torch.randn(2, 6, 6, 5)
    states = [cell.inputs[0](a), cell.inputs[1](b)]
    states.append(cell.edges[0](states[0]) + cell.edges[1](states[1]))
    states.append(cell.edges[2](states[0]) + cell.edges[3](states[1]) + cell.edges[4](states[2]))
    states.append(sum(cell.edges[5 + i](states[i]) for i in range(4)))
    assert torch.allclose(cell(a, b), torch.cat(states[2:], 1), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_reductions_lie_at_a_third_and_two_thirds_and_odd_sizes_pass(size):
    for layers in (1, 2, 3, 6):
        net = network(layers=layers)
        strides = [any(m.stride == (2, 2) for m in c.edges.modules() if isinstance(m, nn.Conv2d)) for c in net.cells]
        assert [i for i, each in enumerate(strides) if each] == sorted({layers // 3, 2 * layers // 3})
        assert net(torch.rand(2, 1, *size)).shape == (2, 5)


def test_cells_of_a_kind_share_their_alphas_and_norms_have_no_weights():
    net = network(layers=6)
    assert len(architecture_parameters(net)) == 2 * 5
    inside = [m for c in net.cells for m in c.modules() if isinstance(m, nn.BatchNorm2d)]
    assert inside
    assert all(m.weight is None for m in inside)
    assert all(m.alphas is net.normal_alphas[0] for c in (net.cells[0], net.cells[1]) for m in [c.edges[0]])
    assert net.cells[2].edges[0].alphas is net.reduction_alphas[0]
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(X), net.eval()(X))


def test_the_genotype_reads_normal_and_reduction_alphas_each_from_its_own():
    net = network()
    with torch.no_grad():
        for alphas in net.normal_alphas:
            alphas[1] = 1.0
        for alphas in net.reduction_alphas:
            alphas[2] = 1.0
    found = net.genotype()
    assert {edge.primitive for edge in found.normal} == {"skip_connect"}
    assert {edge.primitive for edge in found.reduction} == {"sep_conv_3x3"}
    assert found.nodes == 2


def test_every_alpha_and_weight_is_reached_by_the_loss():
    net = network(weighting="scalar")
    with torch.no_grad():
        for alphas in architecture_parameters(net):
            alphas.normal_(generator=torch.Generator().manual_seed(3))
    net(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in architecture_parameters(net))
    assert all(p.grad is not None for p in net.parameters())


def test_the_weighting_reaches_every_mixed_op():
    for options in ({"weighting": "scalar"}, {"weighting": "max_w", "detach_max": True}):
        ops = [m for m in network(**options).modules() if isinstance(m, MixedOp)]
        assert len(ops) == 4 * 5
        assert {(m.weighting, m.detach_max) for m in ops} == {(options["weighting"], "detach_max" in options)}


def test_the_network_of_a_genotype_has_its_edges_with_weights_in_its_norms():
    edges = (GenotypeEdge("skip_connect", 0), GenotypeEdge("sep_conv_3x3", 1)) * 2
    other = (GenotypeEdge("max_pool_3x3", 1), GenotypeEdge("dil_conv_5x5", 0), *edges[:1], GenotypeEdge("none", 2))
    net = build_from_genotype(Genotype(edges, other), 5, in_channels=1, channels=6, layers=3)
    assert net(X).shape == (3, 5)
    assert all(m.weight is not None for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    normal, reduced = net.cells[0].eval(), net.cells[1]
    a, b = torch.randn(2, 18, 4, 4), torch.randn(2, 18, 4, 4)
    s = [normal.inputs[0](a), normal.inputs[1](b)]
    s.append(normal.edges[0](s[0]) + normal.edges[1](s[1]))
    s.append(normal.edges[2](s[0]) + normal.edges[3](s[1]))
    assert torch.allclose(normal(a, b), torch.cat(s[2:], 1), atol=1e-6)
    assert [type(e).__name__ for e in reduced.edges] == ["ResizablePool", "SharpSepConv", "FactorizedReduce", "Zero"]
    assert reduced.edges[3].stride == 1  # an edge from a node inside the cell does not halve the size again


def test_a_search_space_of_ones_own():
    own = {
        "linear": lambda c, s, affine: nn.Conv2d(c, c, 1, s),
        "pool": lambda c, s, affine: nn.MaxPool2d(s, s, 0, ceil_mode=True),
    }
    net = SearchNetwork(5, own, in_channels=1, channels=4, layers=3, nodes=1)
    assert {edge.primitive for edge in net.genotype().normal} <= set(own)
    built = build_from_genotype(net.genotype(), 5, in_channels=1, channels=4, layers=3, primitives=own)
    assert built(X).shape == net(X).shape


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"primitives must be names.*'conv'"):
        SearchNetwork(5, ["conv"])
    with pytest.raises(ValueError, match="primitives must hold another"):
        SearchNetwork(5, ["none"])
    with pytest.raises(ValueError, match=r"alphas must be \(5, 3\)"):
        extract_edges(torch.zeros(4, 3), NAMES, 2)
    with pytest.raises(ValueError, match="alphas must be finite"):
        extract_edges(torch.full((2, 3), float("nan")), NAMES, 1)
    with pytest.raises(ValueError, match="alphas must be one for each of the 5 edges"):
        SearchCell(3, 3, 4, [nn.Parameter(torch.zeros(8))], nodes=2)
    edges = (GenotypeEdge("skip_connect", 0), GenotypeEdge("skip_connect", 1))
    with pytest.raises(ValueError, match="normal has an edge from state 2 to node 0"):
        Genotype((GenotypeEdge("skip_connect", 2), edges[0]), edges)
    with pytest.raises(ValueError, match="two edges for each node"):
        Genotype(edges[:1], edges[:1])
    with pytest.raises(ValueError, match="primitives must hold those of the genotype, 'skip_connect'"):
        build_from_genotype(Genotype(edges, edges), 5, primitives={"a": lambda c, s, affine: nn.Identity()})


def test_an_edge_on_which_none_is_strong_is_a_weak_edge():
    alphas = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [9.0, 5.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    edges = extract_edges(alphas, ["none", "a", "b"], nodes=2)
    assert [edge.source for edge in edges[2:]] == [1, 2]
    assert [edge.primitive for edge in edges[2:]] == ["a", "b"]
