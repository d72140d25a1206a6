import pytest
import torch

from heldout.nn import GraphClassifier

pytest.importorskip("torch_geometric")


EDGES = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
BATCH = torch.tensor([0, 0, 0, 1, 1])


def classifier(**options):
    torch.manual_seed(0)
    return GraphClassifier("gin", 4, 2, hidden=8, **options).eval()


@pytest.mark.parametrize("readout", ["sum", "mean"])
def test_logits_are_the_head_of_the_readout_of_each_graph_and_graphs_do_not_touch(readout):
    model, x = classifier(readout=readout), torch.randn(5, 4)
    logits = model(x, EDGES, BATCH)
    nodes = model.nodes(x, EDGES)
    first = nodes[:3].sum(0) if readout == "sum" else nodes[:3].mean(0)
    assert torch.allclose(logits[0], model.head(first), atol=1e-5)
    alone = model(x[3:], torch.tensor([[0, 1], [1, 0]]))
    assert torch.allclose(logits[1:], alone, atol=1e-5)


def test_the_order_of_nodes_does_not_matter():
    model, x, order = classifier(), torch.randn(5, 4), torch.tensor([4, 2, 0, 1, 3])
    moved = torch.empty(5, dtype=torch.int64)
    moved[order] = torch.arange(5)
    assert torch.allclose(model(x[order], moved[EDGES], BATCH[order]), model(x, EDGES, BATCH), atol=1e-5)


def test_about_ten_thousand_parameters_at_the_defaults():
    assert 5_000 < sum(p.numel() for p in GraphClassifier("gin", 4, 2).parameters()) < 12_000


def test_bad_input_is_refused_by_name():
    model, x = classifier(), torch.randn(5, 4)
    for call, name in (
        (lambda: GraphClassifier("mlp", 4, 2), "encoder"),
        (lambda: GraphClassifier("gin", 0, 2), "features"),
        (lambda: GraphClassifier("gin", 4, 2, readout="max"), "readout"),
        (lambda: GraphClassifier("gin", 4, 2, dropout=2.0), "dropout"),
        (lambda: model(x, EDGES, BATCH[:4]), "batch"),
        (lambda: model(x[0], EDGES, BATCH), "x"),
    ):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call()
