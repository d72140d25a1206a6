import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heldout.data import edge_hook, edges_of, training_graph, with_edges
from heldout.method import Splits

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data

X, EDGES, OTHERS = torch.zeros(3, 1), torch.tensor([[0, 1], [1, 2]]), torch.tensor([[2], [0]])


@pytest.mark.parametrize("order", itertools.permutations((None, 0, 1, 2)))
def test_hooks_act_by_their_place_whatever_came_first(order):
    module, seen = nn.Identity(), []

    def hook_of(place):
        def hook(module, args, kwargs):
            seen.append(place)

        if place is not None:
            hook.place = place
        return hook

    handles = [edge_hook(module, hook_of(place)) for place in order]
    module(X)
    assert seen == [None, 0, 1, 2]
    handles[order.index(1)].remove()
    seen.clear()
    module(X)
    assert seen == [None, 0, 2]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((X, EDGES, "more"), {}), ((X,), {"edge_index": EDGES, "batch": 1}), ((), {"x": X, "edge_index": EDGES})],
)
def test_edges_of_a_call_are_found_and_replaced_by_position_or_name(args, kwargs):
    assert edges_of(args, kwargs) is EDGES
    new_args, new_kwargs = with_edges(args, kwargs, OTHERS)
    assert edges_of(new_args, new_kwargs) is OTHERS
    assert edges_of(args, kwargs) is EDGES  # what was given stays
    assert [each for each in (*new_args, *new_kwargs.values()) if each is not OTHERS] == [
        each for each in (*args, *kwargs.values()) if each is not EDGES
    ]


def test_one_data_is_another_with_other_edges_and_shares_the_rest():
    data = Data(x=X, edge_index=EDGES, y=torch.tensor([1, 0, 1]))
    assert edges_of((data,), {}) is EDGES
    (new,), kwargs = with_edges((data,), {}, OTHERS)
    assert new.edge_index is OTHERS
    assert data.edge_index is EDGES
    assert new.x is X
    assert new.y is data.y
    assert kwargs == {}


def test_the_graph_of_training_examples_is_found():
    graph = SimpleNamespace(x=X, edge_index=EDGES)

    class Rows(list):
        pass

    nodes, graphs = Rows([1]), Rows([1])
    nodes.graph, graphs.graphs = graph, [graph, None]
    assert training_graph(Splits(train=nodes)) is graph
    assert training_graph(Splits(train=graphs)) is graph
    assert training_graph(Splits(train=(X, torch.zeros(3)))) is None
