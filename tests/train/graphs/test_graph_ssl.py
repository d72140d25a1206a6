import copy
import math

import pytest
import torch
from torch import nn

from heldout.losses import barlow_twins_loss, bootstrap_loss, cca_ssg_loss, scaled_cosine_error, two_view_info_nce
from heldout.tasks import BlockModel
from heldout.train import BGRL, CCASSG, GRACE, GraphBarlowTwins, GraphMAE, GraphSSL

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.nn import GCN

NO_VIEWS = {"drop_edge": (0.0, 0.0), "mask_feature": (0.0, 0.0)}


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=80, classes=3, features=12, signal=2.0).sample(0)


def encoder(**options):
    torch.manual_seed(3)
    return GCN(12, 16, 2, 8, **options)


METHODS = {
    "cca": lambda e, **o: CCASSG(e, **o),
    "gbt": lambda e, **o: GraphBarlowTwins(e, **o),
    "bgrl": lambda e, **o: BGRL(e, 8, **o),
    "mae": lambda e, **o: GraphMAE(e, 12, 8),
    "grace": lambda e, **o: GRACE(e, 8, **o),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_loss_embeddings_without_gradient_and_leaves_its_mode(graph, name):
    method = METHODS[name](encoder(dropout=0.5, norm="batch_norm"))
    assert isinstance(method, GraphSSL)
    statistics = {k: v.clone() for k, v in method.encoder.named_buffers()}
    method.train()
    h = method.embed(graph)
    assert h.shape == (80, 8)
    assert not h.requires_grad
    assert torch.equal(h, method.embed(graph))
    assert all(torch.equal(v, statistics[k]) for k, v in method.encoder.named_buffers())
    assert all(module.training for module in method.modules())
    loss = method.loss(graph)
    loss.backward()
    assert loss.ndim == 0
    trained = [p for n, p in method.encoder.named_parameters() if n.endswith("weight") and "norm" not in n]
    assert trained
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)


@pytest.mark.parametrize("name", METHODS)
def test_draws_follow_the_generator(graph, name):
    method = METHODS[name](encoder())
    one, two, other = (method.loss(graph, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("name", METHODS)
def test_steps_lower_the_loss(graph, name):
    method = METHODS[name](encoder())
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = method.loss(graph, torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_without_dropping_the_losses_are_those_of_the_embeddings(graph):
    h = encoder().eval()(graph.x, graph.edge_index)
    found = CCASSG(encoder(), decorrelation=0.3, **NO_VIEWS).loss(graph)
    torch.testing.assert_close(found, cca_ssg_loss(h, h, 0.3))
    found = GraphBarlowTwins(encoder(), off_diagonal=0.3, **NO_VIEWS).loss(graph)
    torch.testing.assert_close(found, barlow_twins_loss(h, h, 0.3))
    grace = GRACE(encoder(), 8, temperature=0.3, **NO_VIEWS)
    projected = grace.projector(h)
    torch.testing.assert_close(grace.loss(graph), two_view_info_nce(projected, projected, 0.3))


def test_views_are_two_with_their_own_probabilities(graph):
    seen = []

    class Spy(nn.Module):
        def forward(self, x, edges):
            seen.append((float((x == 0).all(0).double().mean()), edges.shape[1] / graph.num_edges))
            return x

    draws = torch.Generator().manual_seed(0)
    method = CCASSG(Spy(), drop_edge=(0.1, 0.6), mask_feature=(0.7, 0.0))
    for _ in range(50):
        method.loss(graph, draws)
    first, second = (torch.tensor(seen[at::2]).mean(0) for at in (0, 1))
    assert first.tolist() == pytest.approx([0.7, 0.9], abs=0.05)
    assert second.tolist() == pytest.approx([0.0, 0.4], abs=0.05)


def test_bgrl_compares_crosswise_and_the_target_gets_no_gradient(graph):
    method = BGRL(encoder(), 8)
    views = method._views(graph, torch.Generator().manual_seed(4))
    q = [method.predictor(method.encoder(*view)) for view in views]
    t = [method.target(*view) for view in views]
    found = method.loss(graph, torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, bootstrap_loss(q[0], t[1], q[1], t[0]))
    found.backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert 0 <= found.item() <= 4


def test_the_target_begins_elsewhere_and_is_the_average_in_closed_form():
    method = BGRL(encoder(), 8, momentum=0.9)
    start = copy.deepcopy(method.target.state_dict())
    assert not torch.equal(start["convs.0.lin.weight"], method.encoder.state_dict()["convs.0.lin.weight"])
    for step in range(1, 5):
        method.after_step(step / 8)
    kept = math.prod(1 - 0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 5))
    for name, value in method.target.state_dict().items():
        wanted = kept * start[name] + (1 - kept) * method.encoder.state_dict()[name]
        torch.testing.assert_close(value, wanted)


def test_the_momentum_ends_at_1():
    method = BGRL(encoder(), 8, momentum=0.5)
    before = copy.deepcopy(method.target.state_dict())
    method.after_step(1.0)
    assert all(torch.equal(value, before[name]) for name, value in method.target.state_dict().items())


def test_graph_mae_masks_exactly_half_and_scores_only_those(graph):
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, edges):
            seen["x"] = x
            return x[:, :8]

    class Decoder(nn.Module):
        def forward(self, codes, edges):
            seen["codes"] = codes
            return seen["outputs"]

    method = GraphMAE(Spy(), 12, 8, decoder=Decoder(), mask_rate=0.3, alpha=3.0)
    method.token.data.fill_(7.0)
    method.to_decoder.weight.data.copy_(torch.eye(8) * 2)
    seen["outputs"] = torch.randn(80, 12)
    loss = method.loss(graph)
    masked = (seen["x"] == 7.0).all(1)
    assert int(masked.sum()) == math.floor(0.3 * 80)
    assert torch.equal(seen["x"][~masked], graph.x[~masked])
    assert not seen["codes"][masked].any()
    torch.testing.assert_close(seen["codes"][~masked], 2 * graph.x[~masked, :8])
    torch.testing.assert_close(loss, scaled_cosine_error(seen["outputs"][masked], graph.x[masked], 3.0))


def test_grace_draws_as_many_anchors_as_asked_for(graph, monkeypatch):
    sizes = []

    def loss(first, second, temperature):
        sizes.append((len(first), len(second)))
        return first.sum()

    monkeypatch.setattr("heldout.train.graphs.graph_ssl.two_view_info_nce", loss)
    GRACE(encoder(), 8, anchors=30).loss(graph)
    GRACE(encoder(), 8, anchors=500).loss(graph)
    assert sizes == [(30, 30), (80, 80)]


@pytest.mark.parametrize("name", METHODS)
def test_of_a_batch_with_neighbours_the_first_nodes_count_alone(graph, name):
    method = METHODS[name](_PerNode(), **({} if name == "mae" else NO_VIEWS))
    batch = Data(x=graph.x, edge_index=graph.edge_index[:, :0], batch_size=30)
    other = Data(x=torch.cat([graph.x[:30], graph.x[30:] * 5 + 1]), edge_index=batch.edge_index, batch_size=30)
    found = [method.loss(each, torch.Generator().manual_seed(0)) for each in (batch, other)]
    torch.testing.assert_close(*found)


class _PerNode(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(12, 8)

    def forward(self, x, edges):
        return self.map(x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: CCASSG(encoder(), decorrelation=-1.0), "decorrelation"),
        (lambda: CCASSG(encoder(), drop_edge=(0.1, 1.0)), "drop_edge"),
        (lambda: GraphBarlowTwins(encoder(), off_diagonal=-1.0), "off_diagonal"),
        (lambda: GraphBarlowTwins(encoder(), mask_feature=(-0.1, 0.1)), "mask_feature"),
        (lambda: BGRL(encoder(), 0), "dim"),
        (lambda: BGRL(encoder(), 8, momentum=1.5), "momentum"),
        (lambda: BGRL(encoder(), 8).after_step(1.5), "progress"),
        (lambda: GraphMAE(encoder(), 12, 8, mask_rate=0.0), "mask_rate"),
        (lambda: GraphMAE(encoder(), 12, 8, alpha=0.5), "alpha"),
        (lambda: GraphMAE(encoder(), 12, 8, drop_edge=1.0), "drop_edge"),
        (lambda: GraphMAE(encoder(), 11, 8).loss(BlockModel(nodes=40, features=12).sample(0)), "data must have x"),
        (lambda: GRACE(encoder(), 8, temperature=0.0), "temperature"),
        (lambda: GRACE(encoder(), 8, anchors=1), "anchors"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_an_encoder_that_pools_is_refused(graph):
    class Pool(nn.Module):
        def forward(self, x, edges):
            return x.mean(0, keepdim=True)

    with pytest.raises(ValueError, match="encoder must give"):
        CCASSG(Pool()).loss(graph)
    with pytest.raises(ValueError, match="encoder must give"):
        CCASSG(Pool()).embed(graph)
    with pytest.raises(TypeError, match="data must have"):
        CCASSG(Pool()).embed(graph.x)
