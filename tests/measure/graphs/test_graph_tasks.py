import dataclasses

import pytest
import torch

from heldout.data import split_links
from heldout.measure import GraphTasks, probe_clustering, probe_link_prediction, probe_node_classification
from heldout.tasks import BlockModel, split_nodes

pytest.importorskip("torch_geometric")
from sklearn.metrics import normalized_mutual_info_score


@pytest.fixture(scope="module")
def world():
    graph = split_nodes(BlockModel(nodes=200, classes=3).sample(0), 10, 50)
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    return graph, GraphTasks(
        graph.y, masks, split_links(graph), node_epochs=20, link_epochs=5, link_width=8, restarts=2
    )


def test_it_is_what_the_probes_say(world):
    graph, tasks = world
    found = tasks.measure(graph.x, seed=3)
    node = probe_node_classification(graph.x, graph.y, tasks.masks, 3, epochs=20)
    link = probe_link_prediction(graph.x, tasks.split, 3, epochs=5, width=8)
    clusters = probe_clustering(graph.x, graph.y, seed=3, nodes=graph.test_mask, restarts=2)
    val = normalized_mutual_info_score(graph.y[graph.val_mask], clusters.clusters[graph.val_mask])
    assert found == {
        "accuracy": node.accuracy, "val_accuracy": node.val_accuracy, "auc": link.auc, "ap": link.ap,
        "val_auc": link.val_auc, "nmi": clusters.nmi, "ari": clusters.ari, "val_nmi": pytest.approx(val),
    }  # fmt: skip


def test_standardised_columns_have_no_scale_and_dead_ones_stay(world):
    graph, tasks = world
    same = dataclasses.replace(tasks, scaling="columns")
    h = graph.x.clone()
    h[:, 0] = 3.0
    moved = h * torch.linspace(0.5, 40, h.shape[1]) + 7
    assert same.measure(h) == pytest.approx(same.measure(moved), abs=0.02)
    scaled = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-8).sqrt()
    assert same.measure(h) == tasks.measure(scaled)


def test_rows_have_length_one_and_nodes_of_zeros_stay(world):
    graph, tasks = world
    h = graph.x.clone()
    h[3] = 0
    h[5] *= 1e6  # one far outside is no cluster of its own
    unit = torch.nn.functional.normalize(h, dim=1)
    assert dataclasses.replace(tasks, scaling="rows").measure(h) == tasks.measure(unit)
    both = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-8).sqrt()
    wanted = tasks.measure(torch.nn.functional.normalize(both, dim=1))
    assert dataclasses.replace(tasks, scaling="both").measure(h) == wanted
    with pytest.raises(ValueError, match="scaling"):
        dataclasses.replace(tasks, scaling="all")


def test_tasks_can_be_asked_for_alone_and_are_known_by_what_is_given(world):
    graph, tasks = world
    assert tasks.known == ("classification", "link", "clustering")
    assert sorted(tasks.measure(graph.x, ["link"])) == ["ap", "auc", "val_auc"]
    assert GraphTasks(split=tasks.split).known == ("link",)
    unmasked = GraphTasks(graph.y, restarts=1)
    assert unmasked.known == ("clustering",)
    assert unmasked.measure(graph.x)["nmi"] == probe_clustering(graph.x, graph.y, restarts=1).nmi


def test_bad_input_is_refused(world):
    graph, tasks = world
    with pytest.raises(ValueError, match="y or split"):
        GraphTasks()
    with pytest.raises(ValueError, match="masks need y"):
        GraphTasks(masks=tasks.masks, split=tasks.split)
    with pytest.raises(ValueError, match="masks must have 3"):
        GraphTasks(graph.y, masks=tasks.masks[:2])
    with pytest.raises(ValueError, match="link_epochs"):
        GraphTasks(graph.y, link_epochs=0)
    with pytest.raises(ValueError, match="tasks must be one of"):
        GraphTasks(split=tasks.split).measure(graph.x, ["classification"])
    with pytest.raises(ValueError, match="tasks must not be empty"):
        tasks.measure(graph.x, [])
    with pytest.raises(ValueError, match="h must be finite"):
        tasks.measure(graph.x * torch.nan)
