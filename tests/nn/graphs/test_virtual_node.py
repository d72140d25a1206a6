import copy

import pytest
import torch
from torch import nn

import heldout
from heldout.method import Splits
from heldout.nn import VirtualNode, add_virtual_node, rebuilt, structure_of, virtual_node
from heldout.problem.graphs import call_on_graph, graph_splits, on_graphs

pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, SAGEConv, global_mean_pool
from torch_geometric.transforms import VirtualNode as PeerVirtualNode


class OfNodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = SAGEConv(4, 8), SAGEConv(8, 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(4, 8), GCNConv(8, 3)

    def forward(self, x, edge_index, edge_weight):
        return self.second(self.first(x, edge_index, edge_weight).relu(), edge_index, edge_weight)


class OfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = SAGEConv(4, 8), SAGEConv(8, 3)

    def forward(self, x, edge_index, batch):
        return global_mean_pool(self.second(self.first(x, edge_index).relu(), edge_index), batch)


class OfData(OfGraphs):
    def forward(self, data):
        return super().forward(data.x, data.edge_index, data.batch)


class NodesOfData(OfNodes):
    def forward(self, data):
        return super().forward(data.x, data.edge_index)


def graph(seed, nodes=6, edges=9):
    generator = torch.Generator().manual_seed(seed)
    made = Data(
        x=torch.randn(nodes, 4, generator=generator), edge_index=torch.randint(nodes, (2, edges), generator=generator)
    )
    made.edge_weight = torch.rand(edges, generator=generator) + 0.5
    made.y = torch.randint(3, (nodes,), generator=generator)
    return made


def by_transform(data):
    """PyG's own: it joins the node by edges of weight 1 and features 0."""
    return PeerVirtualNode()(data.clone())


def with_node(kind, start=None):
    torch.manual_seed(0)
    plain = kind()
    node = VirtualNode(4)
    if start is not None:
        node.start.data = start
    return plain, add_virtual_node(copy.deepcopy(plain), node)


def test_a_node_network_answers_as_on_pygs_transformed_graph():
    plain, module = with_node(OfNodes)
    data = graph(0)
    wanted = by_transform(data)
    assert torch.allclose(module(data.x, data.edge_index), plain(wanted.x, wanted.edge_index)[:6], atol=1e-6)
    assert not torch.allclose(module(data.x, data.edge_index), plain(data.x, data.edge_index), atol=1e-3)


def test_weights_of_its_edges_are_one():
    plain, module = with_node(Weighted)
    data = graph(1)
    wanted = by_transform(data)
    found = module(data.x, data.edge_index, edge_weight=data.edge_weight)
    assert torch.allclose(found, plain(wanted.x, wanted.edge_index, wanted.edge_weight)[:6], atol=1e-6)


@pytest.mark.parametrize("kind", [OfGraphs, OfData])
def test_graphs_of_a_batch_are_answered_as_pygs_transformed_ones(kind):
    plain, module = with_node(kind)
    data = [graph(seed, nodes=3 + seed) for seed in range(4)]
    wanted, given = Batch.from_data_list([by_transform(each) for each in data]), Batch.from_data_list(data)
    if kind is OfData:
        assert torch.allclose(module(given), plain(wanted), atol=1e-6)
        assert given.num_nodes == sum(3 + seed for seed in range(4))  # what was given stays
    else:
        found = module(given.x, given.edge_index, batch=given.batch)
        assert torch.allclose(found, plain(wanted.x, wanted.edge_index, wanted.batch), atol=1e-6)


def test_the_learned_features_count_and_get_a_gradient():
    plain, module = with_node(OfNodes, torch.tensor([1.0, -2.0, 0.5, 3.0]))
    data, wanted = graph(2), by_transform(graph(2))
    wanted.x[-1] = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = module(data.x, data.edge_index)
    assert torch.allclose(found, plain(wanted.x, wanted.edge_index)[:6], atol=1e-6)
    found.square().sum().backward()
    assert module.virtual_node.start.grad.abs().min() > 0


@pytest.mark.parametrize("kind", [OfNodes, NodesOfData])
def test_nodes_of_several_graphs_in_a_batch_are_answered_as_alone(kind):
    graphs = [graph(3, 5), graph(4, 7), graph(5, 4)]
    _, module = with_node(kind, torch.ones(4))
    plain = copy.deepcopy(module)
    on_graphs(module, graphs)
    # hooks of the problem come first, as in a fit
    fresh = on_graphs(kind(), graphs)
    module = add_virtual_node(fresh, VirtualNode(4))
    module.load_state_dict(plain.state_dict())
    asked = {"node": torch.tensor([6, 0, 3, 2, 4]), "graph": torch.tensor([1, 0, 2, 1, 0])}
    found = module(**asked)
    for row, (node, number) in enumerate(zip(*asked.values(), strict=True)):
        alone = call_on_graph(plain, graphs[number])
        assert torch.allclose(found[row], alone[node], atol=1e-6)
    assert "_heldout_batch" not in module.__dict__


@pytest.mark.parametrize("shuffled", [False, True])
def test_where_nodes_lie_in_a_batch_does_not_matter(shuffled):
    node = VirtualNode(2)
    x, batch = torch.arange(10.0).reshape(5, 2), torch.tensor([3, 0, 3, 0, 7] if shuffled else [0, 0, 3, 3, 7])
    edges = torch.tensor([[0, 2], [2, 0]]) if shuffled else torch.tensor([[2, 3], [3, 2]])
    new_x, new_edges, new_batch, rows = node(x, edges, batch)
    assert torch.equal(new_x[rows], x)
    assert torch.equal(new_batch[rows], batch)
    assert new_batch.tolist() == sorted(new_batch.tolist())
    assert len(new_x) == 8
    assert torch.equal(new_edges[:, :2], rows[edges])
    assert torch.equal(new_batch[new_edges[0]], new_batch[new_edges[1]])
    virtual = torch.ones(8).index_fill(0, rows, 0).bool()
    counts = torch.bincount(new_edges[1, 2:], minlength=8)
    assert counts[virtual].tolist() == [2, 2, 1]
    assert set(counts[~virtual].tolist()) == {1}


def test_it_trains_and_comes_back_from_disk_with_its_node(tmp_path):
    data = graph(6, nodes=40, edges=120)
    mask = torch.arange(40) < 30
    splits, graphs = graph_splits(Splits(train=(data, mask), test={"iid": (data, ~mask)}))
    fitted = heldout.fit(on_graphs(OfNodes(), graphs), splits, virtual_node(), epochs=3, batch_size=64)
    assert fitted.module.virtual_node.start.abs().sum() > 0  # it was trained
    wanted, targets = fitted.outputs(splits.test["iid"])
    assert wanted.shape == (10, 3)
    assert len(targets) == 10
    fitted.save(tmp_path / "kept")
    again = heldout.load(tmp_path / "kept", lambda: on_graphs(OfNodes(), graphs))
    assert torch.equal(again.outputs(splits.test["iid"])[0], wanted)


def test_graph_problems_train_with_it():
    data = [graph(seed, nodes=4 + seed % 3) for seed in range(12)]
    for number, each in enumerate(data):
        each.y = torch.tensor(number % 3)
    splits, graphs = graph_splits(Splits(train=data[:9], test={"iid": data[9:]}))
    fitted = heldout.fit(on_graphs(OfGraphs(), graphs), splits, virtual_node(), epochs=2, batch_size=4)
    assert fitted.outputs(splits.test["iid"])[0].shape == (3, 3)


def test_structures_tell_of_it():
    _, module = with_node(OfNodes)
    assert structure_of(module)["virtual_node"] == ["VirtualNode", {"features": 4}]
    again = rebuilt(OfNodes(), structure_of(module))
    again.load_state_dict(module.state_dict())
    data = graph(7)
    assert torch.equal(again(data.x, data.edge_index), module(data.x, data.edge_index))


def test_what_is_no_graph_is_refused():
    with pytest.raises(ValueError, match="x must have 2 features"):
        VirtualNode(2)(torch.zeros(3, 4), torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="edge_index must be integers from 0 to 2"):
        VirtualNode(2)(torch.zeros(3, 2), torch.tensor([[0], [3]]))
    with pytest.raises(ValueError, match="part 'virtual_node' already"):
        add_virtual_node(add_virtual_node(OfNodes(), VirtualNode(4)), VirtualNode(4))
    splits = Splits(train=(torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    assert "no graphs" in virtual_node().check(nn.Linear(2, 2), splits)


class Told(OfNodes):
    """Keeps how many nodes and edges it was called with in training."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, edge_index):
        if self.training:
            virtual = (edge_index == len(x) - 1).any(0)
            self.seen.append((len(x), int(virtual.sum()), int((~virtual).sum())))
        return super().forward(x, edge_index)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", ["drop_edge", "teddy", "eerm"])
def test_methods_that_change_edges_leave_those_of_the_virtual_node(other, first):
    from heldout.data import drop_edge, teddy
    from heldout.train import eerm

    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(40, (2, 60), generator=generator)
    ends = ends[:, ends[0] != ends[1]].unique(dim=1)
    data = Data(x=torch.randn(40, 4), edge_index=torch.cat([ends, ends.flip(0)], 1).unique(dim=1))
    data.y = torch.randint(3, (40,), generator=generator)
    splits, graphs = graph_splits(Splits(train=(data, torch.arange(40) < 30)))
    method = {"drop_edge": drop_edge(0.5), "teddy": teddy(0.5), "eerm": eerm()}[other]
    both = virtual_node() + method if first else method + virtual_node()
    module = heldout.fit(lambda: on_graphs(Told(), graphs), splits, both, epochs=1, batch_size=64).module
    assert all(nodes == 41 and virtual == 80 for nodes, virtual, _ in module.seen)
    if other != "eerm":
        pairs = data.num_edges // 2
        assert all(edges == 2 * (pairs - pairs // 2) for *_, edges in module.seen)


@pytest.mark.parametrize("first", [True, False])
def test_edges_are_dropped_of_each_environment(first):
    from heldout.data import drop_edge
    from heldout.train import eerm

    edges = torch.stack([torch.arange(40), (torch.arange(40) + 1) % 40])
    data = Data(x=torch.randn(40, 4), edge_index=edges, y=torch.arange(40) % 3)
    splits, graphs = graph_splits(Splits(train=(data, torch.arange(40) < 30)))
    both = drop_edge(0.5) + eerm() if first else eerm() + drop_edge(0.5)
    module = heldout.fit(lambda: on_graphs(Told(), graphs), splits, both, epochs=1, batch_size=64).module
    counts = [virtual + edges for _, virtual, edges in module.seen]
    assert len(counts) == 3
    assert all(count < 40 for count in counts)


@pytest.mark.parametrize("kind", ["logits", "dict"])
def test_rows_of_virtual_nodes_are_dropped_of_outputs_with_logits(kind):
    from types import SimpleNamespace

    class Wrapped(OfNodes):
        def forward(self, x, edge_index):
            logits = super().forward(x, edge_index)
            return {"logits": logits} if kind == "dict" else SimpleNamespace(logits=logits)

    graphs = [graph(8, 5), graph(9, 6)]
    torch.manual_seed(0)
    plain = add_virtual_node(on_graphs(OfNodes(), graphs), VirtualNode(4))
    wrapped = add_virtual_node(on_graphs(Wrapped(), graphs), VirtualNode(4))
    wrapped.load_state_dict(plain.state_dict())
    asked = {"node": torch.tensor([5, 0, 4]), "graph": torch.tensor([1, 0, 1])}
    assert torch.equal(wrapped(**asked), plain(**asked))


def test_weights_in_a_column_are_one_and_attributes_in_a_row_zero():
    class Edges(nn.Module):
        def forward(self, x, edge_index, edge_weight, edge_attr):
            self.got = edge_weight, edge_attr
            return x

    module = add_virtual_node(Edges(), VirtualNode(4))
    data = graph(10)
    module(data.x, data.edge_index, edge_weight=data.edge_weight[:, None], edge_attr=torch.full((9,), 5.0))
    assert module.got[0].shape == (21, 1)
    assert (module.got[0][9:] == 1).all()
    assert (module.got[1][9:] == 0).all()


def test_it_may_be_added_before_the_problem_makes_graphs_of_batches():
    graphs = [graph(11, 5), graph(12, 6)]
    torch.manual_seed(0)
    plain = OfNodes()
    first = on_graphs(add_virtual_node(copy.deepcopy(plain), VirtualNode(4)), graphs)
    second = add_virtual_node(on_graphs(copy.deepcopy(plain), graphs), VirtualNode(4))
    asked = {"node": torch.tensor([5, 0, 4]), "graph": torch.tensor([1, 0, 1])}
    assert torch.equal(first(**asked), second(**asked))


def test_whole_numbers_and_a_part_of_that_name_are_told_before():
    data = graph(13)
    data.x = data.x.long()
    splits, _ = graph_splits(Splits(train=(data, torch.ones(6, dtype=torch.bool))))
    assert "real numbers" in virtual_node().check(OfNodes(), splits)
    fine, _ = graph_splits(Splits(train=(graph(13), torch.ones(6, dtype=torch.bool))))
    assert virtual_node().check(OfNodes(), fine) is None
    assert "already" in virtual_node().check(add_virtual_node(OfNodes(), VirtualNode(4)), fine)


@pytest.mark.parametrize("width", [1, 3])
def test_data_keeps_its_weights_attributes_and_pointers(width):
    class Reads(nn.Module):
        def forward(self, data):
            self.got = data
            return data.x

    data = graph(14)
    data.edge_weight = torch.full((9, 1), 2.0)
    data.edge_attr = torch.full((9, width), 5.0)
    module = add_virtual_node(Reads(), VirtualNode(4))
    module(Batch.from_data_list([data, data]))
    assert module.got.edge_weight.shape == (18 + 24, 1)
    assert (module.got.edge_weight[18:] == 1).all()
    assert module.got.edge_attr.shape == (18 + 24, width)
    assert (module.got.edge_attr[18:] == 0).all()
    assert module.got.ptr.tolist() == [0, 7, 14]
