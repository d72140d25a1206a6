import pytest
import torch

from heldout.data import split_links
from heldout.measure import GraphTasks
from heldout.tasks import BlockModel, split_nodes
from heldout.train import foundation_report

pytest.importorskip("torch_geometric")
FEW = {"node_epochs": 5, "link_epochs": 2, "link_width": 4, "restarts": 1}


def graph(seed=0):
    return split_nodes(BlockModel(nodes=120, classes=3, features=12).sample(seed), 8, 30, seed)


def test_there_is_a_row_for_each_number_and_it_is_what_the_tasks_say():
    methods = {"x": lambda data, seed: data.x, "half": lambda data, seed: data.x[:, :6]}
    rows = foundation_report(methods, {"one": graph(), "drawn": graph}, [1, 2], **FEW)
    assert len(rows) == 2 * 2 * 2 * 8
    keys = [tuple(row[name] for name in ("method", "graph", "seed", "metric")) for row in rows]
    assert len(set(keys)) == len(rows)
    own = graph(2)
    masks = (own.train_mask, own.val_mask, own.test_mask)
    wanted = GraphTasks(own.y, masks, split_links(own, seed=2), **FEW).measure(own.x[:, :6], seed=2)
    found = {
        row["metric"]: row["value"]
        for row in rows
        if (row["method"], row["graph"], row["seed"]) == ("half", "drawn", 2)
    }
    assert found == wanted


def test_methods_see_training_edges_alone_and_the_graph_stays():
    own, seen = graph(), []

    def watch(data, seed):
        seen.append(data.edge_index)
        return data.x

    before = own.edge_index.clone()
    foundation_report({"a": watch}, {"g": own}, [3], **FEW)
    foundation_report({"a": watch}, {"g": own}, [3], encode_with="all", **FEW)
    assert torch.equal(seen[0], split_links(own, seed=3).edge_index)
    assert torch.equal(seen[1], own.edge_index)
    assert torch.equal(own.edge_index, before)


def test_bad_input_is_refused():
    x = {"x": lambda data, seed: data.x}
    with pytest.raises(ValueError, match="methods must not be empty"):
        foundation_report({}, {"g": graph()}, [0])
    with pytest.raises(ValueError, match="seeds"):
        foundation_report(x, {"g": graph()}, [])
    with pytest.raises(ValueError, match="methods must give"):
        foundation_report({"x": lambda data, seed: data.x[1:]}, {"g": graph()}, [0])
    with pytest.raises(ValueError, match="h must be finite"):
        foundation_report({"x": lambda data, seed: data.x * torch.nan}, {"g": graph()}, [0])
    with pytest.raises(TypeError, match="graphs must have"):
        foundation_report(x, {"g": BlockModel(nodes=120).sample(0)}, [0])
