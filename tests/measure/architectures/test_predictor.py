import copy

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from heldout.measure import ArchitecturePredictor, regression_head, standardised
from heldout.nn import CGEncoder, FuzzyCMeans, FuzzyHeads, computation_graph, shape_maxima


def path(n, op=2):
    edges = torch.arange(n + 1) + torch.tensor([[0], [1]])
    return Data(op=torch.tensor([0, *[op] * n, 1]), edge_index=edges, num_nodes=n + 2)


GRAPHS = [path(n, op) for n in range(1, 9) for op in (2, 3)]
VALUES = [n / 10 + (op == 3) for n in range(1, 9) for op in (2, 3)]


def predictor(clusters=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ArchitecturePredictor(CGEncoder(4, 16, 2), FuzzyHeads(16, clusters), seed=seed)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_fitting_learns_the_order_and_leaves_encoder_and_clusters_alone():
    model = predictor().pretrain(GRAPHS, epochs=3)
    before = state(model.encoder)
    model.fit(GRAPHS, VALUES, epochs=200, lr=0.01)
    assert same(before, model.encoder.state_dict())
    ranks = model.predict(GRAPHS).argsort().argsort().double()
    truth = torch.tensor(VALUES).argsort().argsort().double()
    assert torch.corrcoef(torch.stack([ranks, truth]))[0, 1] > 0.95


def test_pretraining_moves_the_encoder_only_and_draws_like_spectra_together():
    model = predictor()
    encoder, heads = state(model.encoder), state(model.heads)
    model.pretrain(GRAPHS, epochs=0)
    assert same(encoder, model.encoder.state_dict())
    model.pretrain(GRAPHS, epochs=60, lr=0.01)
    assert not same(encoder, model.encoder.state_dict())
    assert same(heads, model.heads.state_dict())
    with torch.no_grad():
        unit = nn.functional.normalize(torch.cat([model.encoder(path(n)) for n in (3, 4, 8)]), dim=1)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]


def test_end_to_end_training_moves_the_encoder():
    torch.manual_seed(0)
    model = ArchitecturePredictor(CGEncoder(4, 16, 2), regression_head(16))
    before = state(model.encoder)
    model.fit(GRAPHS, VALUES, epochs=2, train_encoder=True)
    assert not same(before, model.encoder.state_dict())


def test_finetuning_gives_another_predictor_and_leaves_this_one():
    model = predictor().fit(GRAPHS, VALUES, epochs=5)
    scores, centres = model.predict(GRAPHS), model.heads.centres.clone()
    tuned = model.finetune(GRAPHS, [-value for value in VALUES], epochs=200, lr=0.01)
    assert torch.equal(model.predict(GRAPHS), scores)
    assert torch.equal(tuned.heads.centres, centres)
    assert same(state(model.encoder), tuned.encoder.state_dict())
    assert torch.corrcoef(torch.stack([tuned.predict(GRAPHS), torch.tensor(VALUES)]))[0, 1] < -0.8
    other = model.finetune(GRAPHS, VALUES, epochs=2, train_encoder=True)
    assert not same(state(model.encoder), other.encoder.state_dict())


def test_scores_depend_on_the_seed_alone():
    first, second, other = (
        predictor(seed=s).pretrain(GRAPHS, epochs=2).fit(GRAPHS, VALUES, epochs=3) for s in (1, 1, 2)
    )
    assert torch.equal(first.predict(GRAPHS), second.predict(GRAPHS))
    assert not torch.equal(first.predict(GRAPHS), other.predict(GRAPHS))


def test_batches_are_those_of_torch_geometric():
    from heldout.measure.architectures.predictor import _Stack

    rows = torch.tensor([5, 0, 11])
    found, expected = _Stack(GRAPHS).take(rows), Batch.from_data_list([GRAPHS[i] for i in rows])
    for key in ("op", "edge_index", "batch"):
        assert torch.equal(found[key], expected[key])


def test_models_are_traced_and_rank_as_their_graphs():
    models = [nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(n)]) for n in (1, 2, 3)]
    x = torch.zeros(1, 1, 5, 5)
    graphs = [computation_graph(model, x) for model in models]
    encoder = CGEncoder(layers=1, maxima=shape_maxima(graphs))
    fitted = ArchitecturePredictor(encoder, regression_head(32), example_input=x).fit(models, [1, 2, 3], epochs=1)
    assert torch.equal(fitted.predict(models), fitted.predict(graphs))


def test_fitting_does_not_see_how_good_a_family_is():
    family = ["a", "b"] * 8
    shifted = [value * 3 + 50 if name == "b" else value for value, name in zip(VALUES, family, strict=True)]
    first, second = (predictor().fit(GRAPHS, values, family, epochs=3).predict(GRAPHS) for values in (VALUES, shifted))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_heads_are_given_standardised_embeddings_and_clusters_of_them():
    model = predictor().fit(GRAPHS, VALUES, epochs=3)
    with torch.no_grad():
        raw = torch.cat([model.encoder(graph) for graph in GRAPHS])
        embeddings = (raw - raw.mean(0)) / raw.std(0, correction=0)
        torch.testing.assert_close(model.predict(GRAPHS), model.heads(embeddings), rtol=1e-3, atol=1e-4)
    clusters = FuzzyCMeans(3, seed=0).fit(embeddings)
    torch.testing.assert_close(model.heads.centres, clusters.centres, rtol=1e-3, atol=1e-3)


def test_pretraining_depends_on_temperature_and_number_of_eigenvalues():
    encoders = [
        predictor().pretrain(GRAPHS, epochs=2, lr=0.01, **options).encoder for options in ({}, {"tau": 1.0}, {"k": 2})
    ]
    assert not same(state(encoders[0]), encoders[1].state_dict())
    assert not same(state(encoders[0]), encoders[2].state_dict())


def test_predictions_are_without_dropout_and_leave_the_mode():
    model = ArchitecturePredictor(CGEncoder(4, 16, 2, dropout=0.5), FuzzyHeads(16, 2)).fit(GRAPHS, VALUES, epochs=1)
    model.encoder.train()
    assert torch.equal(model.predict(GRAPHS), model.predict(GRAPHS))
    assert model.encoder.training


def test_accuracies_are_standardised_within_a_family():
    found = standardised([0.1, 0.2, 0.3, 90, 50], ["a", "a", "a", "b", "b"])
    torch.testing.assert_close(found, torch.tensor([-1.224745, 0.0, 1.224745, 1.0, -1.0]))


def fitted():
    return predictor().fit(GRAPHS, VALUES, epochs=1)


def cyclic():
    return Data(op=torch.tensor([0, 2, 1]), edge_index=torch.tensor([[0, 1, 2], [1, 2, 1]]))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: predictor().fit([], []), "graphs"),
        (lambda: predictor().fit(GRAPHS[:2], VALUES[:2]), "X must have at least 3 rows"),
        (lambda: predictor().fit(GRAPHS, VALUES[:-1]), "accuracies"),
        (lambda: predictor().fit(GRAPHS, [0.5] * 16), "accuracies"),
        (lambda: predictor().fit(GRAPHS, [float("nan"), *VALUES[1:]]), "values"),
        (lambda: predictor().fit(GRAPHS, VALUES, ["a"] * 15), "family"),
        (lambda: predictor().fit([*GRAPHS[:-1], cyclic()], VALUES), "graphs must be acyclic, that at 15"),
        (lambda: predictor().fit(GRAPHS, VALUES, lr=0.0), "lr"),
        (lambda: predictor().predict(GRAPHS), "fit"),
        (lambda: predictor().finetune(GRAPHS, VALUES), "fit"),
        (lambda: fitted().predict([]), "graphs"),
        (lambda: fitted().predict([nn.Linear(2, 2)]), "example_input"),
        (lambda: predictor().pretrain(GRAPHS[:1]), "graphs"),
        (lambda: predictor().pretrain(GRAPHS, tau=0.0), "tau"),
    ],
)
def test_bad_input_is_refused_by_name(call, argument):
    with pytest.raises(ValueError, match=argument):
        call()


def test_edges_to_nodes_that_are_not_there_and_graphs_without_nodes_are_refused():
    fine = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [1]]))
    astray = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [2]]))
    none = Data(op=torch.zeros(0, dtype=torch.int64), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    predictor = ArchitecturePredictor(CGEncoder(2, 8), regression_head(8))
    with pytest.raises(ValueError, match=r"edge_index of graphs\[1\]"):
        predictor.fit([fine, astray], [0.0, 1.0])
    with pytest.raises(ValueError, match="number 1 has none"):
        predictor.fit([fine, none], [0.0, 1.0])


def test_a_fit_end_to_end_does_not_scale_by_an_earlier_fit():
    graphs = [Data(op=torch.tensor([0, *[2] * n, 1]), edge_index=torch.arange(n + 1) + torch.tensor([[0], [1]]))
              for n in range(1, 5)]  # fmt: skip
    fresh = ArchitecturePredictor(CGEncoder(3, 8), regression_head(8))
    used = copy.deepcopy(fresh)
    start = copy.deepcopy((used.encoder.state_dict(), used.heads.state_dict()))
    used.fit(graphs, [1, 2, 3, 4], epochs=2)
    used.encoder.load_state_dict(start[0])
    used.heads.load_state_dict(start[1])
    for each in (fresh, used):
        each.fit(graphs, [1, 2, 3, 4], epochs=3, train_encoder=True)
    assert torch.equal(fresh.predict(graphs), used.predict(graphs))


def test_an_encoder_in_double_precision_is_pretrained():
    graphs = [Data(op=torch.tensor([0, *[2] * n, 1]), edge_index=torch.arange(n + 1) + torch.tensor([[0], [1]]))
              for n in range(1, 5)]  # fmt: skip
    predictor = ArchitecturePredictor(CGEncoder(3, 8).double(), FuzzyHeads(8, 2).double())
    scores = predictor.pretrain(graphs, epochs=2).fit(graphs, [1, 2, 3, 4], epochs=2).predict(graphs)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
