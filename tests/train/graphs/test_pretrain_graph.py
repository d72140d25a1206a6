import math

import pytest
import torch

from heldout.data import split_links
from heldout.measure import GraphTasks
from heldout.tasks import BlockModel, split_nodes
from heldout.train import BGRL, CCASSG, pretrain_graph
from heldout.train.graphs.pretrain_graph import _rate

pytest.importorskip("torch_geometric")
from torch import nn
from torch_geometric.nn import GCN

STOPS = ("last", "pretext", "classification", "link", "clustering")


@pytest.fixture(scope="module")
def world():
    graph = split_nodes(BlockModel(nodes=150, classes=3, features=12).sample(0), 10, 40)
    split = split_links(graph)
    shown = graph.clone()
    shown.edge_index = split.edge_index
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    return shown, GraphTasks(graph.y, masks, split, node_epochs=10, link_epochs=3, link_width=8, restarts=1)


def method(seed=3, **options):
    torch.manual_seed(seed)
    return CCASSG(GCN(12, 16, 2, 8, **options))


class Scripted(nn.Module):
    """Loss 1, 2, 3 ... of the number of steps, and embeddings that say it."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self.told = losses, []
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("made", torch.zeros(()))

    def loss(self, data, generator=None):
        self.made += 1
        return self.losses[int(self.made) - 1] + 0 * self.weight.sum()

    def embed(self, data):
        return torch.zeros(data.num_nodes, 2)

    def after_step(self, progress):
        self.told.append(progress)


def test_each_rule_keeps_the_weights_of_its_best_look(world):
    shown, tasks = world
    found = pretrain_graph(made := method(), shown, 12, stop=STOPS, tasks=tasks, eval_every=3)
    assert [record["epoch"] for record in found.records] == [3, 6, 9, 12]
    for rule, name in (("classification", "val_accuracy"), ("link", "val_auc"), ("clustering", "val_nmi")):
        best = max(found.records, key=lambda record: record[name])
        assert (found.kept[rule].epoch, found.kept[rule].score) == (best["epoch"], best[name])
        made.load_state_dict(found.kept[rule].state)
        assert tasks.measure(made.embed(shown), [rule])[name] == best[name]
    assert found.kept["last"].epoch == 12
    assert found.kept["pretext"].epoch == min(found.records, key=lambda record: record["loss"])["epoch"]


def test_the_weights_are_in_the_end_those_of_the_first_rule(world):
    shown, _ = world
    made = Scripted([5.0, 3.0, 4.0, 6.0])
    found = pretrain_graph(made, shown, 4, stop=["pretext", "last"], eval_every=1)
    assert found.kept["pretext"][:2] == (2, 3.0)
    assert int(made.made) == 2
    assert int(found.kept["last"].state["made"]) == 4
    assert math.isnan(found.kept["last"].score)
    assert not made.training


def test_the_loss_of_a_look_is_the_mean_since_the_one_before_and_the_last_epoch_is_looked_at(world):
    found = pretrain_graph(Scripted([1.0, 2.0, 6.0, 4.0, 9.0]), world[0], 5, eval_every=2)
    assert [(record["epoch"], record["loss"]) for record in found.records] == [(2, 1.5), (4, 5.0), (5, 9.0)]


def test_methods_are_told_of_their_progress(world):
    made = Scripted([1.0] * 4)
    pretrain_graph(made, world[0], 4)
    assert made.told == [0.25, 0.5, 0.75, 1.0]


def test_looking_changes_nothing_and_one_seed_gives_one_training(world):
    shown, tasks = world
    one, two, three = method(dropout=0.3), method(dropout=0.3), method(dropout=0.3)
    before = torch.get_rng_state()
    pretrain_graph(one, shown, 6, stop=["last", *STOPS[1:]], tasks=tasks, eval_every=2, seed=5)
    pretrain_graph(two, shown, 6, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    pretrain_graph(three, shown, 6, seed=6)
    assert torch.equal(one.embed(shown), two.embed(shown))
    assert not torch.equal(one.embed(shown), three.embed(shown))


@pytest.mark.parametrize(("batch", "steps"), [("full", 3), ("subgraph", 9), ("node", 9)])
def test_an_epoch_is_one_pass_over_the_batches(world, batch, steps):
    found = pretrain_graph(method(), world[0], 3, batch=batch, size=60)
    assert found.steps == steps
    assert found.nodes_per_second > 0
    assert found.peak_bytes is None


def test_a_loader_of_ones_own_is_gone_through(world):
    from torch_geometric.loader import RandomNodeLoader

    found = pretrain_graph(method(), world[0], 2, batch=RandomNodeLoader(world[0], num_parts=5))
    assert found.steps == 10


def test_the_rate_rises_and_falls_to_0():
    rates = [_rate(step, 10, 0.2) for step in range(11)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
    assert {_rate(step, 10, None) for step in range(11)} == {1.0}


def test_the_optimizer_of_ones_own_is_used(world):
    made = method()
    start = made.embed(world[0])
    pretrain_graph(made, world[0], 3, torch.optim.SGD(made.parameters(), lr=0.0))
    assert torch.equal(start, made.embed(world[0]))


def test_the_targets_of_bgrl_follow(world):
    torch.manual_seed(0)
    made = BGRL(GCN(12, 16, 2, 8), 8)
    before = made.target.convs[0].lin.weight.clone()
    pretrain_graph(made, world[0], 3, warmup=0.3)
    assert not torch.equal(before, made.target.convs[0].lin.weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"size": 0}, "size"),
        ({"eval_every": 0}, "eval_every"),
        ({"seed": -1}, "seed"),
        ({"warmup": 2.0}, "warmup"),
        ({"stop": "best"}, "stop"),
        ({"stop": []}, "stop"),
        ({"stop": "link"}, "tasks must hold"),
        ({"batch": "half"}, "batch"),
        ({"batch": []}, "batch"),
    ],
)
def test_bad_input_is_refused(world, options, says):
    with pytest.raises(ValueError, match=says):
        pretrain_graph(method(), world[0], **options)


def test_a_loss_that_is_not_finite_is_told(world):
    with pytest.raises(FloatingPointError, match="learning rate"):
        pretrain_graph(Scripted([math.nan]), world[0], 1)
    with pytest.raises(TypeError, match="method must have loss"):
        pretrain_graph(nn.Linear(2, 2), world[0])
