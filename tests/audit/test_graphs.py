"""Graphs in the audit: neighbours of another class, few neighbours, over-smoothing, and graphs without labels."""

import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, SimpleConv

from heldout.audit import audit
from heldout.audit.graphs import layer_energies, neighbours, sizes, smoothing, without_labels
from heldout.audit.work import Audit, NotApplicableError
from heldout.problem import GraphProblem, call_on_graph, load_problem
from heldout.problem.graphs import graph_fields

CLASSES = 2


def stars(count, others, seed=0):
    """Stars of 5 nodes of one of two classes; the leaves of the first ``others`` stars are of the other class."""
    hubs = torch.arange(count) * 5
    leaves = torch.arange(count * 5).reshape(count, 5)[:, 1:]
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    y = labels.repeat_interleave(5)
    y[leaves[:others].reshape(-1)] = 1 - y[leaves[:others].reshape(-1)]
    one_way = torch.stack([hubs.repeat_interleave(4), leaves.reshape(-1)])
    x = nn.functional.one_hot(y, CLASSES).float()
    return Data(x=x, edge_index=torch.cat([one_way, one_way.flip(0)], 1), y=y)


class Majority(nn.Module):
    """Answers what most neighbours are."""

    def __init__(self):
        super().__init__()
        self.mean, self.scale = SimpleConv("mean"), nn.Parameter(torch.ones(1))

    def forward(self, x, edge_index):
        return self.scale * self.mean(x, edge_index)


class Hubs(nn.Module):
    """Knows the nodes that have several neighbours, and answers class 0 for the others."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, edge_index):
        hub = torch.bincount(edge_index[0], minlength=len(x)) > 1
        return self.weight * torch.where(hub[:, None], x, torch.tensor([1.0, 0.0]))


def work_on(tmp_path, module, test=None, **fields):
    train = stars(20, 2)
    everyone = torch.ones(100, dtype=torch.bool)
    test = {"given": stars(40, 10, seed=1)} if test is None else test
    whole = {name: (graph, torch.ones(len(graph.x), dtype=torch.bool)) for name, graph in test.items()}
    splits, known, unlabeled = graph_fields(
        {"train": (train, everyone), "val": (train, everyone), "test": whole, **fields}
    )
    problem = GraphProblem(tmp_path / "mine.py", lambda: module, splits, {}, graphs=known, unlabeled=unlabeled)
    document = {"asked": "mine.py", "findings": [], "weights": "given"}
    return Audit(problem, problem.model(0), 0, float("inf"), document)


def test_what_neighbours_of_another_class_cost_is_told(tmp_path):
    work = work_on(tmp_path, Majority())
    neighbours(work)
    found = work.document["homophily"]["given"]
    assert found["homophily"] == pytest.approx(0.75)  # the nodes of 10 of 40 stars have none of their like
    assert (found["among_like"]["n"], found["among_like"]["accuracy"]) == (150, 1.0)
    assert (found["among_others"]["n"], found["among_others"]["accuracy"]) == (50, 0.0)
    cost, change = work.document["findings"]
    assert (cost["value"], cost["severity"]) == (1.0, "serious")
    assert cost["methods"] == ["drop_edge"]  # group_dro needs groups
    assert change["value"] == pytest.approx(0.9 - 0.75)
    assert change["severity"] == "open"  # 0.1 lies within its interval
    assert change["low"] < 0.1 < change["high"]


def test_nodes_with_few_neighbours_that_do_worse_are_told(tmp_path):
    work = work_on(tmp_path, Hubs())
    sizes(work)
    few, many = work.document["sizes"]
    assert (few["group"], few["n"], many["group"], many["n"], many["accuracy"]) == (
        "1 to 1 neighbours", 160, "4 to 4 neighbours", 40, 1.0,
    )  # fmt: skip
    labels = work.of("given")[1]
    right = torch.ones(200, dtype=torch.bool)
    right[torch.arange(200) % 5 != 0] = labels[torch.arange(200) % 5 != 0] == 0
    assert few["accuracy"] == pytest.approx(float(right[torch.arange(200) % 5 != 0].double().mean()))
    (finding,) = work.document["findings"]
    assert finding["value"] == pytest.approx(float(right.double().mean()) - few["accuracy"])


class Deep(nn.Module):
    """Many layers that average, of one weight each."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(GCNConv(CLASSES, CLASSES, bias=False) for _ in range(layers))
        for layer in self.layers:
            layer.lin.weight.data = torch.eye(CLASSES)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def test_over_smoothing_is_told_by_layer(tmp_path):
    work = work_on(tmp_path, Deep(16))
    smoothing(work)
    energies = work.document["energies"]
    assert list(energies) == ["features", *(f"layers.{i}" for i in range(16))]
    assert list(energies.values()) == sorted(energies.values(), reverse=True)
    (finding,) = work.document["findings"]
    assert finding["value"] == energies["layers.15"] < 1e-3
    assert finding["severity"] == "serious"
    shallow = work_on(tmp_path, Deep(1))
    smoothing(shallow)
    assert shallow.document["findings"][0]["severity"] == "fine"


def test_a_network_without_messages_has_no_over_smoothing(tmp_path):
    work = work_on(tmp_path, Hubs())
    assert layer_energies(work.module, stars(3, 1)) == {}
    with pytest.raises(NotApplicableError, match="no layer passes messages"):
        smoothing(work)


def test_graphs_without_labels_are_ranked_and_the_order_is_judged_on_those_with_labels(tmp_path):
    tests = {f"{others} of 40": stars(40, others, seed=others) for others in (0, 8, 16, 24)}
    blurred = [stars(40, 0), stars(40, 0)]
    blurred[1].x = 0.5 + 0.01 * blurred[1].x  # answers near one half
    work = work_on(tmp_path, Majority(), tests, unlabeled=dict(zip(("sharp", "blurred"), blurred, strict=True)))
    without_labels(work)
    rows = work.document["without_labels"]["graphs"]
    assert [rows[name]["error"] for name in tests] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert "error" not in rows["sharp"]
    assert rows["blurred"]["doubt"] > rows["sharp"]["doubt"]
    assert "lebed" not in rows["sharp"]  # weights were given: where they began is not known
    # it is as sure of wrong answers as of right ones, so that no estimate sees the errors
    assert set(work.document["without_labels"]["rank_correlation"].values()) == {0.0}
    (finding,) = work.document["findings"]
    assert "0.00 (mean doubt)" in finding["reading"]
    assert finding["severity"] == "for information"


def test_without_such_graphs_the_reason_is_told(tmp_path):
    with pytest.raises(NotApplicableError, match=r"gives no graphs as Splits\(unlabeled=\.\.\.\), and fewer than 4 to"):
        without_labels(work_on(tmp_path, Majority()))
    with pytest.raises(ValueError, match=r"unlabeled\['a'\] must be a graph with node features x, got int"):
        work_on(tmp_path, Majority(), unlabeled={"a": 3})


FILE = """
import torch
from torch_geometric.nn import GCN
from heldout.tasks import BlockModel

epochs = 3

def graph(seed):
    return BlockModel(nodes=200, classes=3, homophily=0.7).sample(seed)

def model():
    return GCN(64, 8, 2, 3)

def data():
    train = graph(0)
    half = torch.arange(200) < 100
    later = {f"graph {seed}": (graph(seed), torch.ones(200).bool()) for seed in range(1, 5)}
    return {
        "train": (train, half), "val": (train, ~half), "test": {"same": (train, ~half), **later},
        "unlabeled": [graph(5)], "domains": torch.arange(200) % 3,
    }
"""


def test_a_file_with_graphs_is_audited_whole(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    problem = load_problem(path)
    assert problem.splits.domains.tolist() == [i % 3 for i in range(100)]
    found = audit(path, budget=600, out=tmp_path / "out")
    assert set(found["without_labels"]["graphs"]) == {f"graph {seed}" for seed in range(1, 5)} | {"unlabeled 0"}
    assert all(row["lebed"] > 0 for row in found["without_labels"]["graphs"].values())
    assert set(found["energies"]) == {"features", "convs.0", "convs.1"}
    assert {"homophily", "sizes", "domains"} <= set(found)
    parts = ("neighbours", "bias", "over-smoothing", "graphs without")
    missing = [each for each in (*found["skipped"], *found["not_applicable"]) if each["part"].startswith(parts)]
    assert not missing


def test_what_comes_in_counts_and_unknown_labels_do_not(tmp_path):
    """Of directed stars with all edges towards the hub, the hub has neighbours, and the leaves have none."""
    graph = stars(40, 0, seed=1)
    graph.edge_index = graph.edge_index[:, graph.edge_index[1] % 5 == 0]
    work = work_on(tmp_path, Majority(), {"given": graph})
    neighbours(work)
    assert work.document["homophily"]["given"]["homophily"] == 1.0
    assert work.document["homophily"]["given"]["among_like"]["n"] == 40
    sizes(work)
    assert [row["group"] for row in work.document["sizes"]] == ["0 to 0 neighbours", "4 to 4 neighbours"]
    unknown = stars(40, 0, seed=1)
    work = work_on(tmp_path, Majority(), {"given": unknown})
    unknown.y[torch.arange(200) % 5 == 1] = -1  # some of a graph's, in masks that leave them out
    work.problem.splits.test["given"].nodes = torch.arange(200)[torch.arange(200) % 5 != 1]
    neighbours(work)
    assert work.document["homophily"]["given"]["homophily"] == 1.0


def test_few_nodes_tell_no_change_of_homophily(tmp_path):
    work = work_on(tmp_path, Majority(), {"given": stars(40, 10, seed=1), "few": stars(1, 1, seed=2)})
    neighbours(work)
    (change,) = [finding for finding in work.document["findings"] if finding["name"] == "change of homophily"]
    assert change["value"] == pytest.approx(0.15)  # not that of 5 nodes, 0.9


def test_equal_rows_are_smoothed_whatever_the_degrees_and_a_graph_without_edges_is_not(tmp_path):
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.scale = SimpleConv("mean"), nn.Parameter(torch.ones(1))

        def forward(self, x, edge_index):
            return self.mean(torch.ones_like(x), edge_index) * self.scale

    work = work_on(tmp_path, Means())
    smoothing(work)
    (finding,) = work.document["findings"]
    assert finding["severity"] == "serious"
    alone = stars(40, 10, seed=1)
    alone.edge_index = alone.edge_index[:, :0]
    with pytest.raises(NotApplicableError, match="no edges"):
        smoothing(work_on(tmp_path, Deep(2), {"given": alone}))
    with pytest.raises(NotApplicableError, match="same labels"):
        smoothing(work_on(tmp_path, Deep(2), {"given": stars(40, 0, seed=1)}))


def test_graphs_without_labels_are_answered_by_what_answers(tmp_path):
    tests = {f"{others} of 40": stars(40, others, seed=others) for others in (0, 8, 16, 24)}
    work = work_on(tmp_path, Majority(), tests)
    whole, given, asked = work.module, work.problem.outputs, []

    def answers(fitted, graph):
        asked.append(fitted)
        with torch.no_grad():
            return 0.1 * call_on_graph(whole, graph)

    work.predictor = object()  # its logits are a tenth of the module's
    work.problem.outputs = lambda fitted, data: (0.1 * given(whole, data)[0], given(whole, data)[1])
    work.problem.answers, work.differentiated = answers, lambda: whole
    without_labels(work)
    assert asked == [work.predictor] * 4
    assert work.document["without_labels"]["graphs"]["0 of 40"]["doubt"] == pytest.approx(0.475, abs=0.01)
