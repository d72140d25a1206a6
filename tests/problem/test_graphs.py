"""Nodes and graphs are examples like every other: the model sees whole graphs, and Methods act on them."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heldout import Splits
from heldout.data import batches, gather
from heldout.method import forward
from heldout.methods import available, parse
from heldout.problem import ProblemError, check_problem, inapplicable, load_problem
from heldout.problem.graphs import Graphs, Nodes, call_on_graph, graph_splits, holds_graphs, on_graphs

# Written for a class that only holds tensors, as Data of PyTorch Geometric does.
COMMON = """
import torch, heldout
from types import SimpleNamespace

class Graph(SimpleNamespace):
    def __len__(self):
        return len(vars(self))
    def __getitem__(self, name):
        return getattr(self, name)

class Mean(torch.nn.Module):
    def forward(self, x, edge_index):
        source, target = edge_index
        total = x.index_add(0, target, x[source])
        return total / (1 + torch.bincount(target, minlength=len(x)))[:, None]
"""
NODES = (
    COMMON
    + """
epochs, batch_size = 3, 64

def graph(seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(90) % 3
    edges = (torch.rand(90, 90, generator=g) < torch.where(y[:, None] == y, 0.1, 0.02)).nonzero().T
    return Graph(x=torch.nn.functional.one_hot(y, 5) + torch.randn(90, 5, generator=g), edge_index=edges, y=y)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out, self.mean = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3), Mean()
    def forward(self, x, edge_index):
        return self.out(self.mean(self.first(self.mean(x, edge_index)).relu(), edge_index))

def model():
    return Net()

def data():
    one = graph(0)
    for number, name in enumerate(("train_mask", "val_mask", "test_mask")):
        setattr(one, name, torch.arange(90) // 30 == number)
    return heldout.Splits(train=one, val=one, test={"same": one, "other": (graph(1), torch.arange(40))})
"""
)
GRAPHS = (
    COMMON
    + """
epochs, batch_size = 3, 8

def many(count, seed, largest=9):
    g = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        n = int(torch.randint(4, largest, (), generator=g))
        edges = (torch.rand(n, n, generator=g) < (0.2 if number % 2 else 0.6)).nonzero().T
        found.append(Graph(x=torch.ones(n, 2), edge_index=edges, edge_attr=torch.ones(edges.shape[1], 1),
                           y=torch.tensor([number % 2])))
    return found

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)
    def forward(self, x, edge_index, batch, edge_attr):
        x = self.norm(x.index_add(0, edge_index[1], x[edge_index[0]] * edge_attr))
        return self.out(x.new_zeros(int(batch.max()) + 1, 2).index_add(0, batch, x))

def model():
    return Net()

def data():
    return heldout.Splits(train=many(40, 0), val=many(20, 1), test={"iid": many(20, 2), "larger": many(20, 3, 20)})
"""
)
names = itertools.count()


@pytest.fixture
def load(tmp_path):
    def load(text):
        file = tmp_path / f"graphs_{next(names)}.py"
        file.write_text(text)
        return load_problem(file)

    return load


@pytest.mark.parametrize("text", [NODES, GRAPHS], ids=["nodes", "graphs"])
def test_every_method_trains_or_says_why_not(load, text):
    problem = load(text)
    assert problem.kind.name in ("classification", "binary")
    assert check_problem(problem) == []
    applied = set()
    for name in available():
        method = parse(name, problem.own_methods)
        reason = inapplicable(problem, method)
        if reason is None:
            fitted = problem.fit(method, seed=0, epochs=1)
            assert 0 <= problem.score(fitted, problem.splits.test["other" if text is NODES else "larger"]) <= 1
            applied.add(name)
        else:
            assert len(reason) > 20, name
    assert {"sam", "rm3", "ps_kd"} <= applied


def test_a_batch_of_nodes_gets_what_the_whole_graph_gives_them(load):
    problem = load(NODES)
    module, graph = problem.model(0).eval(), problem.given.train.graph
    plain = nn.Module.__call__(module, graph.x, graph.edge_index)
    inputs, targets = gather(problem.splits.train, torch.tensor([3, 20, 4]))
    torch.testing.assert_close(forward(module, inputs), plain[[3, 20, 4]])
    assert targets.tolist() == [0, 2, 1]


def test_nodes_of_several_graphs_share_a_batch(load):
    problem = load(NODES)
    module = problem.model(0).eval()
    first, other = problem.splits.test["same"], problem.splits.test["other"]
    both = [first[0], other[5], first[1]]
    inputs = {name: torch.stack([example[name] for example in both]) for name in ("node", "graph")}
    expected = [module(nodes.graph.x, nodes.graph.edge_index)[nodes.nodes[i]]
                for nodes, i in ((first, 0), (other, 5), (first, 1))]  # fmt: skip
    torch.testing.assert_close(forward(module, inputs), torch.stack(expected))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_batch_of_graphs_gives_what_each_graph_gives_alone(load, size):
    problem = load(GRAPHS)
    module = problem.model(0).double().eval()
    problem.splits.test["larger"].graphs[0].x.mul_(2)
    alone = torch.cat(
        [
            module(g.x.double(), g.edge_index, torch.zeros(len(g.x), dtype=torch.int64), g.edge_attr.double())
            for g in problem.splits.test["larger"].graphs
        ]
    )
    parts = []
    for inputs, _, _ in batches(problem.splits.test["larger"], size):
        parts.append(forward(module, {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}))
    torch.testing.assert_close(torch.cat(parts), alone, rtol=1e-12, atol=1e-12)


def test_a_copy_of_a_model_shares_the_graphs(load):
    module = load(NODES).model(0)
    assert copy.deepcopy(module).__dict__["_heldout_graphs"] is module.__dict__["_heldout_graphs"]
    assert sorted(module.state_dict()) == ["first.bias", "first.weight", "out.bias", "out.weight"]


def test_a_model_that_takes_one_object_gets_data():
    data = pytest.importorskip("torch_geometric.data")

    class Net(nn.Module):
        def forward(self, data):
            return data.x.new_zeros(int(data.batch.max()) + 1, 1).index_add(0, data.batch, data.x[:, :1])

    graphs = [data.Data(x=torch.full((n, 1), 1.0), edge_index=torch.zeros(2, 0).long(), y=n) for n in (2, 3)]
    splits, _ = graph_splits(Splits(train=graphs, val=graphs, test={"iid": graphs}))
    outputs = forward(on_graphs(Net()), gather(splits.train, torch.arange(2))[0])
    assert outputs.flatten().tolist() == [2, 3]


def test_real_numbers_of_graphs_are_regression(load):
    text = GRAPHS.replace("y=torch.tensor([number % 2])", "y=torch.tensor([n / 3])").replace(
        "Linear(2, 2)", "Linear(2, 1)"
    )
    problem = load(text)
    assert check_problem(problem) == []
    assert (problem.kind.name, problem.metric) == ("regression", "mse")
    assert problem.score(problem.fit(parse("sam"), seed=0), problem.splits.val) > 0


ONE = "def data():\n    g = graph(0)\n    "
BAD = [
    (NODES, ONE + "return heldout.Splits(train=(g, [0, 1]), val=g, test={})", "val_mask"),
    (NODES, ONE + "g.x = None\n    return heldout.Splits(train=(g, [0]))", "no node features"),
    (NODES, ONE + "g.y = None\n    return heldout.Splits(train=(g, [0]))", "train has no y"),
    (NODES, ONE + "return heldout.Splits(train=(g, torch.ones(3) > 0))", "one entry for each of 90 nodes"),
    (NODES, ONE + "g.edge_index = g.edge_index + 9\n    return heldout.Splits(train=(g, [0]))",
     "edge_index of train names nodes outside of its 90"),
    (GRAPHS, "def data():\n    return heldout.Splits(train=many(3, 0), val=[1, 2])", "val must hold graphs"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "more", "message"), BAD)
def test_what_is_wrong_is_told(load, text, more, message):
    with pytest.raises(ProblemError, match=message):
        check_problem(load(text + more))


def test_other_data_are_no_graphs():
    assert not holds_graphs([(torch.zeros(2), 1)])
    dot = SimpleNamespace(x=torch.ones(1, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=1)
    assert holds_graphs([dot])
    assert holds_graphs((dot, torch.tensor([0])))
    assert len(Graphs([dot], 1, 0)) == len(Nodes(dot, torch.tensor([0]))) == 1


def test_a_pass_that_raised_leaves_nothing_behind():

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.broken = nn.Linear(2, 2), True

        def forward(self, x, edge_index):
            if self.broken:
                raise RuntimeError("broken")
            return self.map(x)

    graph = SimpleNamespace(x=torch.zeros(5, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    module = on_graphs(Fails(), [graph])
    with pytest.raises(RuntimeError, match="broken"):
        module(node=torch.tensor([0, 1]), graph=torch.tensor([0, 0]))
    module.broken = False
    assert call_on_graph(module, graph).shape == (5, 2)
